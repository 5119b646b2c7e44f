"""`record.json` as other programs read it; and whatever a shared run folder holds, every verb says so."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from toy_runs import write_toy_run

from faqbench import pipeline
from faqbench.cli import main
from faqbench.config import run_id
from faqbench.records import find_runs
from faqbench.report import ReportRequest, answer
from faqbench.stages import PlainProgress, StageCache

PLANTED = "zz-planted"
VERBS = (
    ["ls", "columns=run,error,gates,bits,quant.scale,seconds", "sort=-seconds"],
    ["show", PLANTED],
    ["watch"],
    ["compare", PLANTED, "toy-fp", "html=none"],
    ["compact", "into=small"],
    ["cache", "ls"],
    ["rm", "select=zz-planted"],
)
TEXTS = st.sampled_from(
    ["", " \n ", "abc", "../../x", "\x1b]0;owned\x07\x1b[2J", "\u202egnp", "a\0b", "x" * 5000, "nan"]
)
NUMBERS = st.sampled_from([0, -1, -1e300, 1.7e308, 10**400, 2**63, 0.5, True])
LEAVES = st.one_of(st.none(), TEXTS, NUMBERS)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=2) | st.dictionaries(TEXTS, v, max_size=2), max_leaves=4
)
RAW = st.sampled_from(
    [
        b"",
        b"{",
        b"null",
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'"\\ud800"',
        b"\xff\xfe",
        b"NaN",
        b"9" * 5000,
    ]
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two good runs, and the record of a third."""
    root = tmp_path_factory.mktemp("good")
    for name in ("fp", "awq", "rtn"):
        run_id = {"fp": "toy-fp", "awq": PLANTED, "rtn": "toy-rtn"}[name]
        write_toy_run(root / "runs", name, run_id=run_id, n_windows=4, n_items=8)
    return root


@pytest.fixture
def place(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    return good


@st.composite
def places(draw, value):
    """A place in a JSON value: where it is, from the top down."""
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    inner = value[key]
    goes_on = isinstance(inner, dict | list) and inner and draw(st.integers(0, 3))
    return (key, *(draw(places(inner)) if goes_on else ()))


def replaced(value, path, new):
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], rest, new) if rest else new
    return copy


def plant(good, content):
    shutil.rmtree("runs", ignore_errors=True)
    shutil.rmtree("small", ignore_errors=True)
    shutil.copytree(good / "runs", "runs")
    record = Path("runs", PLANTED, "record.json")
    record.unlink()
    if callable(content):
        content(record)
    else:
        record.write_bytes(content)


def run(arguments):
    """Run a verb and return its exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def check_every_verb():
    records, damaged = find_runs(Path("runs"))
    names = {r.run_id for r in records}
    assert {"toy-fp", "toy-rtn"} <= names
    assert names | {name for name, _ in damaged} == {"toy-fp", "toy-rtn", PLANTED}
    for verb in VERBS:
        code, out, err = run(verb)
        assert code in (0, 2), (verb, err)
        assert not set(out + err) & set("\x1b\x07\0\u202e"), verb
        if verb[0] in ("ls", "watch", "compact", "cache"):
            assert code == 0, (verb, err)
            assert all(f"{name}: " in err for name, _ in damaged), (verb, err)
    said = answer(ReportRequest(runs=Path("runs"), reports=Path("reports"), name="all"))
    assert said.n_runs >= 2 and "\x1b" not in said.text


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_record_with_anything_anywhere_stops_no_verb(place, data):
    raw = json.loads((place / "runs" / PLANTED / "record.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(places(raw))
        raw = replaced(raw, path, data.draw(VALUES))
    plant(place, json.dumps(raw).encode())
    check_every_verb()


@settings(
    max_examples=9,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(content=RAW)
def test_a_record_that_is_none_stops_no_verb(place, content):
    plant(place, content)
    check_every_verb()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (os.mkfifo, "record.json is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "record.json is a link"),
        (
            lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 10**12),
            "record.json is larger than 32 MB",
        ),
        (Path.mkdir, "record.json is a folder"),
    ],
)
def test_a_pipe_a_device_and_a_huge_file_are_no_records(place, content, reason):
    plant(place, content)
    code, out, err = run(["ls"])
    assert code == 0 and f"{PLANTED}: {reason}" in err and "toy-fp" in out


def test_a_damaged_record_is_named_in_the_report(place):
    plant(place, b'{"schema_version": 1}')
    code, _, err = run(["report"])
    assert code == 0 and f"{PLANTED}: malformed record: " in err
    assert PLANTED in Path("reports/all/index.html").read_text()


KEYS = {
    "schema_version": int,
    "run_id": str,
    "status": str,
    "error": (str, type(None)),
    "config": dict,
    "environment": dict,
    "fingerprints": dict,
    "stages": dict,
    "metrics": list,
    "bits_per_weight": (float, type(None)),
    "peak_memory_bytes": int,
    "gates": list,
    "warnings": list,
}


@pytest.fixture(params=["finished", "failed"])
def raw(request, compose, toy_cell, tmp_path):
    protocols = "evaluation.protocols=[wikitext2-32]"
    chosen = ["model=tiny-llama", "quant=awq", *toy_cell, f"paths.runs={tmp_path}/runs"]
    experiment = compose(*chosen, protocols, "limit=3")
    if request.param == "finished":
        pipeline.run(experiment, cache=StageCache(tmp_path / "c"), progress=PlainProgress())
    else:
        pipeline.write_failure(experiment, "it broke")
    path = experiment.paths.runs / run_id(experiment) / "record.json"

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_keys_of_the_contract_are_there_with_their_types(raw):
    assert {k: isinstance(raw[k], t) for k, t in KEYS.items()} == dict.fromkeys(KEYS, True)
    assert raw["status"] in ("finished", "failed")
    assert (raw["error"] is None) == (raw["status"] == "finished")


def test_metrics_gates_and_stages_have_the_keys_of_the_contract(raw):
    metric = {"task", "name", "value", "stderr", "n", "unit", "higher_is_better"}
    assert all(set(m) >= metric for m in raw["metrics"])
    assert all(set(g) >= {"name", "passed", "detail"} for g in raw["gates"])
    assert all(set(s) >= {"seconds", "cached"} for s in raw["stages"].values())
    assert bool(raw["metrics"]) == bool(raw["gates"]) == (raw["status"] == "finished")


def test_the_configuration_is_nested_as_in_conf_with_nothing_left_to_resolve(raw):
    assert raw["config"]["quant"]["bits"] == raw["config"]["bits"] == 3
    assert "${" not in json.dumps(raw["config"]) and "???" not in json.dumps(raw["config"])
