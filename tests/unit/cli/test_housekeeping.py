"""ls, rm, cache and doctor, in this process, on toy runs and a toy cache."""

import base64
import hashlib
import json
import os
import time

import pytest

from faqbench.cli import doctor, main
from faqbench.records import find_runs
from faqbench.stages import StageCache, list_entries


@pytest.fixture
def runs(toy_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_run("toy-rtn-1", 30.0, seconds=5.0, started="2025-01-03T00:00:00+00:00")
    toy_run("toy-awq-1", 25.0, seconds=50.0, started="2025-01-01T00:00:00+00:00")
    toy_run("toy-faq-1", 24.0, seconds=9.0, started="2025-01-02T00:00:00+00:00",
            config={"bits": 4, "quant": {"name": "faq", "scale": "faq"}})  # fmt: skip
    toy_run("toy-bad-1", status="failed", error="Traceback\nValueError: no", metrics=())
    return tmp_path / "runs"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with an entry that was used long ago, one of today, and an asset."""
    root = tmp_path / "cache"
    monkeypatch.setenv("FAQBENCH_CACHE", str(root))
    (root / "assets" / "model-1").mkdir(parents=True)
    (root / "assets" / "model-1" / "weights").write_bytes(b"w" * 1000)

    def build(folder):
        (folder / "data.bin").write_bytes(b"x" * 10**6)

    with StageCache(root) as stages:
        for name, days in (("old", 40), ("new", 0)):
            path = stages.get("toy", {"name": name}, build).path
            stamp = time.time() - 86400 * days - 60
            os.utime(path, (stamp, stamp))
    return root


def order(text, *names):
    lines = text.splitlines()
    places = [next(i for i, line in enumerate(lines) if name in line) for name in names]
    return places == sorted(places)


def test_ls_is_in_the_order_of_time(runs, capsys):
    assert main(["ls"]) == 0
    assert order(capsys.readouterr().out, "toy-awq-1", "toy-faq-1", "toy-rtn-1")


@pytest.mark.parametrize("arguments", [["*faq*"], ["bits=4"], ["quant=faq"], ["quant.scale=faq"]])
def test_ls_takes_patterns_and_filters(runs, capsys, arguments):
    assert main(["ls", *arguments]) == 0
    out = capsys.readouterr().out
    assert "toy-faq-1" in out and "toy-awq-1" not in out


def test_ls_sorts_by_number_in_both_directions(runs, capsys):
    assert main(["ls", "sort=seconds"]) == 0
    assert order(capsys.readouterr().out, "toy-rtn-1", "toy-faq-1", "toy-awq-1")
    assert main(["ls", "sort=-wikitext2-64/perplexity", "limit=2"]) == 0
    out = capsys.readouterr().out
    assert order(out, "toy-rtn-1", "toy-awq-1") and "toy-faq-1" not in out


def test_ls_shows_the_columns_that_were_asked_for(runs, capsys):
    columns = "run,quant.scale,wikitext2-64/perplexity,peak_memory_bytes,error"
    assert main(["ls", f"columns={columns}"]) == 0
    out = capsys.readouterr().out
    for expected in ("quant.scale", "24", "2 GB", "ValueError: no"):
        assert expected in out
    assert "started" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ls", "columns=run,statsu"], "Did you mean 'status'?"),
        (["ls", "sort=wikitext2-64/perplexit"], "Did you mean 'wikitext2-64/perplexity'?"),
        (["ls", "limit=-1"], "limit=-1 is not allowed"),
        (["ls", "bits=7"], "their values of 'bits' are 3, 4"),
        (["rm"], "rm needs the name of a run, or select="),
        (["rm", "toy-fqa-1"], "Did you mean 'toy-faq-1'?"),
        (["rm", "restore=toy-faq-1"], "'toy-faq-1' is not in"),
        (["rm", "empty=yes"], "empty=yes is not allowed: true or false"),
        (["cache", "prun"], "Did you mean 'prune'?"),
        (["cache", "prune", "days=soon"], "days=soon is not allowed"),
        (["cache", "ls", "stage=to"], "stage=to has no entries; there are assets, toy"),
        (["doctor", "run=x"], "Did you mean 'runs'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(runs, cache, capsys, arguments, expected):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and expected in captured.err


def test_rm_moves_a_run_to_the_trash_and_restore_brings_it_back(runs, capsys):
    before = (runs / "toy-faq-1" / "record.json").read_bytes()
    assert main(["rm", "toy-faq"]) == 0
    assert [r.run_id for r in find_runs(runs)[0]] == ["toy-awq-1", "toy-bad-1", "toy-rtn-1"]
    assert main(["rm", "restore=toy-faq-1"]) == 0
    assert (runs / "toy-faq-1" / "record.json").read_bytes() == before


def test_rm_takes_a_selection_and_the_same_run_twice(runs, toy_run):
    assert main(["rm", "select=bits=3 *rtn*", "toy-awq-1"]) == 0
    assert {r.run_id for r in find_runs(runs)[0]} == {"toy-bad-1", "toy-faq-1"}
    toy_run("toy-rtn-1")
    assert main(["rm", "toy-rtn-1"]) == 0
    kept = sorted(p.name.partition("@")[0] for p in (runs / ".trash").iterdir())
    assert kept == ["toy-awq-1", "toy-rtn-1", "toy-rtn-1"]


@pytest.mark.parametrize(
    ("select", "taken"),
    [
        ("bits=3", {"toy-grid", "toy-seeded"}),
        ("quant=fp", {"toy-baseline"}),
        ("seed=0", {"toy-seeded"}),
        ("quant.round=none", {"toy-baseline"}),
        ("dtype=float32", {"toy-baseline", "toy-grid", "toy-seeded"}),
    ],
)
def test_rm_takes_no_run_for_a_key_that_does_not_decide_it(toy_run, tmp_path, monkeypatch, select, taken):
    monkeypatch.chdir(tmp_path)
    off = {"scale": "none", "clip": "none", "correct": "none"}
    for name, quant in {
        "toy-baseline": {"name": "fp", "round": "none", **off},
        "toy-grid": {"name": "rtn", "round": "nearest", **off},
        "toy-seeded": {"name": "awq", "round": "nearest", **off, "scale": "awq"},
    }.items():
        toy_run(name, config={"bits": 3, "seed": 0, "dtype": "float32", "quant": quant})
    assert main(["rm", f"select={select}"]) == 0
    left = {r.run_id for r in find_runs(tmp_path / "runs")[0]}
    assert {"toy-baseline", "toy-grid", "toy-seeded"} - left == taken


def test_restore_does_not_replace_a_run(runs, toy_run, capsys):
    assert main(["rm", "toy-faq-1"]) == 0
    toy_run("toy-faq-1")
    assert main(["rm", "restore=toy-faq-1"]) == 2
    assert "exists" in capsys.readouterr().err


def test_the_trash_is_emptied_only_when_asked(runs):
    assert main(["rm", "toy-faq-1"]) == 0 and list((runs / ".trash").iterdir())
    assert main(["rm", "empty=true"]) == 0
    assert list((runs / ".trash").iterdir()) == []


def test_cache_ls_counts_stages_and_assets(runs, cache, capsys):
    assert main(["cache", "ls"]) == 0
    out = capsys.readouterr().out
    assert "assets" in out and "2 MB" in out and "3 entries" in out


def test_cache_ls_says_which_runs_used_an_entry(runs, cache, toy_run, capsys):
    entry = next(e.title for e in list_entries(cache) if e.stage == "toy")
    toy_run("toy-user-1", extra={"stage_keys": [{"entry": entry}]})
    assert main(["cache", "ls", "stage=toy"]) == 0
    assert "toy-user-1" in capsys.readouterr().out


def test_cache_verify_names_what_is_damaged(runs, cache, capsys):
    assert main(["cache", "verify", "stage=toy"]) == 0
    entry = next(e for e in list_entries(cache) if e.stage == "toy")
    (entry.path / "data.bin").write_bytes(b"y" * 10**6)
    capsys.readouterr()
    assert main(["cache", "verify"]) == 1
    assert f"{entry.title}: data.bin does not match its checksum" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "n_left"),
    [([], 2), (["days=30"], 1), (["max_gigabytes=0.0015"], 1), (["max_gigabytes=0"], 0),
     (["unused=true"], 0), (["days=30", "dry=true"], 2), (["damaged=true"], 2),
     (["stage=other", "max_gigabytes=0"], None)],
)  # fmt: skip
def test_cache_prune_removes_what_was_asked_for_and_no_asset(runs, cache, arguments, n_left):
    assert main(["cache", "prune", *arguments]) == (2 if n_left is None else 0)
    stages = [e.stage for e in list_entries(cache)]
    assert stages == ["assets"] + ["toy"] * (2 if n_left is None else n_left)


@pytest.fixture
def environment(cache):
    """A virtual environment of another tool's, with one installed file."""
    folder = cache / "environments" / ("e" * 32)
    installed = folder / "lib" / "python3.11" / "site-packages"
    (installed / "tool-1.0.dist-info").mkdir(parents=True)
    (installed / "tool.py").write_text("quantize = None\n")
    digest = hashlib.sha256((installed / "tool.py").read_bytes()).digest()
    checksum = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    record = f"tool.py,sha256={checksum},16\ntool-1.0.dist-info/RECORD,,\n"
    (installed / "tool-1.0.dist-info" / "RECORD").write_text(record)
    (folder / "packages.txt").write_text("tool==1.0\n")
    return folder


def test_cache_ls_says_which_runs_another_tools_environment_made(runs, cache, environment, toy_run, capsys):
    toy_run("toy-tool-1", extra={"checkpoint": {"packages": ["tool==1.0"]}})
    toy_run("toy-tool-2", extra={"checkpoint": {"packages": ["tool==2.0"]}})
    assert main(["cache", "ls", "stage=environments"]) == 0
    said = capsys.readouterr().out
    assert "toy-tool-1" in said and "toy-tool-2" not in said
    assert main(["cache", "prune", "unused=true"]) == 0
    assert environment.is_dir()


def test_cache_verify_reads_environments_against_the_checksums_of_pip(runs, cache, environment, capsys):
    assert main(["cache", "verify", "stage=environments"]) == 0
    (environment / "lib" / "python3.11" / "site-packages" / "tool.py").write_text("other\n")
    assert main(["cache", "verify", "stage=environments"]) == 1
    assert "tool.py does not match its checksum" in capsys.readouterr().out
    (environment / "packages.txt").unlink()
    assert main(["cache", "verify", "stage=environments"]) == 1
    assert "packages.txt is missing" in capsys.readouterr().out


def test_cache_prune_removes_an_environment_that_no_cell_holds(runs, cache, environment, capsys):
    with StageCache(cache) as stages:
        assert stages.hold(environment)
        assert main(["cache", "prune", "stage=environments", "max_gigabytes=0"]) == 0
        assert "1 entry stayed: a running cell holds" in capsys.readouterr().out
    assert main(["cache", "prune", "stage=environments", "max_gigabytes=0"]) == 0
    assert not environment.exists()
    with StageCache(cache) as stages:
        assert not stages.hold(environment)


def test_cache_prune_keeps_what_a_running_cell_holds(runs, cache, capsys):
    with StageCache(cache) as stages:
        assert stages.find("toy", {"name": "old"}) is not None
        assert main(["cache", "prune", "max_gigabytes=0"]) == 0
        assert "1 entry stayed: a running cell holds" in capsys.readouterr().out
    assert len(list_entries(cache)) == 2


def test_cache_prune_removes_damaged_entries(runs, cache):
    entry = next(e for e in list_entries(cache) if e.stage == "toy")
    (entry.path / "data.bin").write_bytes(b"y")
    assert main(["cache", "prune", "damaged=true"]) == 0
    assert entry.title not in [e.title for e in list_entries(cache)]


def test_doctor_says_what_each_finding_means(runs, cache, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_answers", lambda url: False)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "torch",
        "memory",
        "GPU",
        "dtype=auto",
        "W&B",
        "hub",
        "sync",
        "Nothing would stop a run.",
    ):
        assert expected in out


def test_doctor_fails_when_no_record_could_be_written(runs, cache, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_answers", lambda url: False)
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", _refuse)
    assert main(["doctor"]) == 1
    assert "would stop a run: runs" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file", "file/x", "dangling", "n" * 300, "/proc/x"])
def test_doctor_fails_when_the_cache_or_the_runs_cannot_be_written(
    runs, cache, monkeypatch, capsys, tmp_path, place
):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(doctor, "_answers", lambda url: False)
    assert main(["doctor", f"runs={tmp_path / place}"]) == 1
    assert "1 thing would stop a run: runs." in capsys.readouterr().out
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / place))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "1 thing would stop a run: cache." in said and "set FAQBENCH_CACHE" in " ".join(said.split())


def _refuse(**_):
    raise PermissionError


def test_show_says_what_was_planned(runs, toy_run, capsys):
    amounts = {"seconds": 90.0, "peak_memory_bytes": 10**9, "n_bytes": 0}
    toy_run("toy-plan-1", extra={"plan": {"estimate": amounts, "actual": amounts, "error": {}}})
    assert main(["show", "toy-plan-1"]) == 0
    assert "planned: 90 s, 1 GB of memory" in capsys.readouterr().out


def test_a_record_of_a_newer_schema_is_listed_and_left_alone(runs, capsys):
    path = runs / "toy-faq-1" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    assert main(["ls"]) == 0
    captured = capsys.readouterr()
    assert "toy-faq-1: schema_version 2 is not 1" in captured.err and "toy-awq-1" in captured.out


def test_rm_empty_keeps_what_rm_did_not_put_there_and_follows_no_link(runs, tmp_path, capsys):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "work").write_text("mine")
    (runs / "toy-linked-1").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "record.json").write_bytes((runs / "toy-faq-1" / "record.json").read_bytes())
    assert main(["rm", "toy-linked-1", "toy-awq-1"]) == 0
    (runs / ".trash" / "stray").write_text("mine")
    capsys.readouterr()
    assert main(["rm", "empty=true"]) == 0
    assert "Deleted 2 runs" in (out := capsys.readouterr().out) and "stray" in out
    assert [p.name for p in (runs / ".trash").iterdir()] == ["stray"]
    assert (tmp_path / "big" / "work").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["toy-awq-1"], ["empty=true"], ["restore=toy-awq-1"]])
def test_a_trash_that_is_a_link_is_left_alone(runs, tmp_path, capsys, arguments):
    elsewhere = tmp_path / "elsewhere" / "toy-old-1@20250101T000000"
    elsewhere.mkdir(parents=True)
    (runs / ".trash").symlink_to(elsewhere.parent)
    assert main(["rm", *arguments]) == 2
    assert "is a link" in capsys.readouterr().err
    assert elsewhere.is_dir() and (runs / "toy-awq-1").is_dir()


def test_compact_says_which_folder_of_the_machine_its_copies_name(toy_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy_run("toy-rtn-1", config={"model": {"name": "toy", "path": "/home/me/model"}})
    assert main(["compact", "into=small"]) == 0
    assert "model.path=/home/me/model stands in the copies" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["report.title", "model.notes", "tracking.entity"])
def test_a_variable_of_the_environment_is_refused_where_it_would_be_recorded(
    tmp_path, monkeypatch, capsys, key
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "secret")
    assert main(["plan", f"{key}=${{oc.env:TOKEN}}"]) == 2
    err = capsys.readouterr().err
    assert f"{key} takes a variable of the environment" in err and "secret" not in err
    assert main(["plan", "-m", "bits=3,4", f"{key}=${{oc.env:TOKEN}}"]) == 2
    assert f"{key} takes a variable of the environment" in capsys.readouterr().err


def test_a_comparison_replaces_no_file_of_the_users(runs, tmp_path, capsys):
    (tmp_path / "notes.html").write_text("mine")
    assert main(["compare", "toy-rtn-1", "toy-awq-1", "html=notes.html"]) == 2
    assert "is no page of faqbench" in capsys.readouterr().err
    assert (tmp_path / "notes.html").read_text() == "mine"
