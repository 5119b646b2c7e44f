"""The verbs of the command line, `compare` among them, in this process on folders of toy records."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from toy_runs import write_toy_run

from faqbench.cli import VERBS, main
from faqbench.cli.arguments import Flag, Keys, KeysOfSelection, Number, read_arguments
from faqbench.config import UserError
from faqbench.records import (
    SCHEMA_VERSION,
    Gate,
    Metric,
    RunData,
    RunRecord,
    StageTiming,
    run_folders,
    write_run,
    write_sweep,
)


@pytest.fixture
def runs(tmp_path):
    import pandas as pd

    for name, value, rounding in (
        ("toy-fp-0123456789", 20.0, "none"),
        ("toy-rtn-w3-0123456789", 25.5, "nearest"),
    ):
        metric = Metric(
            task="wikitext2-64", name="perplexity", value=value, stderr=0.5, n=63,
            unit="perplexity", higher_is_better=False,
        )  # fmt: skip
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            run_id=name,
            status="finished",
            error=None,
            config={"quant": {"round": rounding}},
            environment={},
            fingerprints={},
            stages={"load": StageTiming(seconds=1.5, cached=True)},
            metrics=(metric,),
            bits_per_weight=None,
            checkpoint_bytes=None,
            peak_memory_bytes=1,
            gates=(Gate(name="finite", passed=False, detail="not finite: x"),),
            warnings=("mind the gap",),
            started="2025-01-01T00:00:00+00:00",
        )
        empty = pd.DataFrame()
        write_run(tmp_path / "runs", RunData(record=record, items=empty, tokens={}, layers=empty), "")
    return tmp_path / "runs"


def test_help_lists_every_verb_with_its_first_line(capsys):
    assert main(["help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        line = next(text for text in lines if f"faqbench {verb} " in text)
        assert len(line.split(verb, 1)[1].strip()) > 10


def test_the_version_is_the_packages(capsys):
    from faqbench import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"faqbench {__version__}\n"


def test_ls_lists_runs_with_their_first_result(runs, capsys):
    assert main(["ls", f"runs={runs}"]) == 0
    text = capsys.readouterr().out
    assert "toy-fp-0123456789" in text and "25.5" in text


def test_ls_lists_two_runs_of_one_draw_which_a_report_leaves_out(runs, capsys):
    copy = runs / "toy-fp-again"
    copy.mkdir()
    text = (runs / "toy-fp-0123456789" / "record.json").read_text()
    (copy / "record.json").write_text(text.replace("toy-fp-0123456789", "toy-fp-again"))
    assert main(["ls", f"runs={runs}"]) == 0
    listed = capsys.readouterr().out
    assert "toy-fp-0123456789" in listed and "toy-fp-again" in listed


def test_ls_says_which_records_are_damaged(runs, capsys):
    (runs / "toy-fp-0123456789" / "record.json").write_text("{")
    assert main(["ls", f"runs={runs}"]) == 0
    assert "toy-fp-0123456789: record.json cannot be read" in capsys.readouterr().err


def test_ls_of_nothing_says_how_to_make_some(tmp_path, capsys):
    assert main(["ls", f"runs={tmp_path}"]) == 0
    assert "experiment=quickstart" in capsys.readouterr().out


def test_show_prints_metrics_stages_gates_and_warnings(runs, capsys):
    assert main(["show", "toy-rtn", f"runs={runs}"]) == 0
    text = capsys.readouterr().out
    for expected in ("toy-rtn-w3-0123456789: finished", "25.5", "load", "NO", "mind the gap"):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show"], "show needs the name of a run"),
        (["show", "toy"], "2 runs begin with 'toy'"),
        (["show", "toy-fq-0123456789"], "Did you mean 'toy-fp-0123456789'?"),
        (["show", "a", "b"], "'b' is not a key=value argument"),
        (["ls", "run=x"], "Did you mean 'runs'?"),
        (["report", "nmae=x"], "Did you mean 'name'?"),
        (["compact"], "compact needs into=FOLDER"),
        (["compact", "into=runs"], "is the folder of runs itself"),
        (["compact", "into=x", "runs=nowhere"], "There is no folder nowhere; runs=FOLDER names another"),
        (["report", "runs=nowhere"], "There is no folder nowhere; runs=FOLDER names another"),
        (["rm", "select="], "rm select= says nothing of the runs to remove"),
        (["sync", "mode=of"], "mode=of is not allowed: auto, online, offline"),
        (["fetch", "gemma-270m"], "Unknown asset 'gemma-270m'. Did you mean 'gemma3-270m'?"),
        (["fetch", "accept_terms=maybe"], "accept_terms=maybe is not allowed: true or false"),
        (["quant=fqa"], "Did you mean 'faq'?"),
        (["bits=9"], "less than or equal to 8"),
        (["model=null"], "Config group override must be a string"),
    ],
)
def test_a_mistake_is_one_sentence_on_standard_error_and_exit_code_2(runs, capsys, arguments, expected):
    words = [*arguments, f"runs={runs}"] if arguments[0] == "show" else arguments
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("faqbench: ") and expected in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "verb", [["report", "reports=written"], ["compact", "into=written"]], ids=lambda v: v[0]
)
def test_a_misspelt_sweep_is_no_name_for_all_runs(runs, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(runs, "nightly", [])
    assert main([*verb, f"runs={runs}", "name=nigthly"]) == 2
    assert "There is no sweep 'nigthly'" in capsys.readouterr().err
    assert not Path("written").exists()


def test_sync_of_nothing_says_so(tmp_path, capsys):
    assert main(["sync", f"runs={tmp_path}"]) == 2
    assert f"There are no runs in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_asked_for_help_explains_itself_and_does_nothing(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([verb, "--help"])
    captured = capsys.readouterr()
    assert verb in captured.out + captured.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_exit_code_130_and_one_line(monkeypatch, capsys):
    from faqbench.cli import results

    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "ls", interrupt)
    assert main(["ls"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_compact_copies_finished_runs_and_the_report_finds_them_by_name(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["compact", "into=runs/study", "name=all"]) == 0
    assert "2 runs copied; runs/study holds 2 runs: 1." in capsys.readouterr().out
    (runs / "toy-fp-0123456789" / "record.json").unlink()
    assert main(["report", "name=study"]) == 0
    assert "over 2 runs: reports/study/index.html" in capsys.readouterr().out
    assert main(["report", "name=other"]) == 0
    assert "over 1 runs" in capsys.readouterr().out


def test_compact_copies_what_is_selected(runs, tmp_path, capsys):
    assert main(["compact", f"runs={runs}", f"into={tmp_path / 'c'}", "select=rtn"]) == 0
    assert [p.name for p in run_folders(tmp_path / "c")] == ["toy-rtn-w3-0123456789"]


class ShowKeys(KeysOfSelection):
    name: str = "all"
    mode: Literal["online", "offline"] = "online"
    dry: Flag = False
    days: Number | None = None


def test_words_and_pairs_are_told_apart_whatever_their_order():
    words, keys = read_arguments("show", ["runs=a", "RUN", "name=x=y"], ShowKeys, n_words=1)
    assert words == ["RUN"] and (keys.runs, keys.name) == (Path("a"), "x=y")


def test_values_are_what_they_mean():
    typed = ["select='a b' bits=3", "mode=offline", "dry=true", "days=1.5"]
    _, keys = read_arguments("show", typed, ShowKeys)
    read = (keys.select, keys.mode, keys.dry, keys.days)
    assert read == (("a b", "bits=3"), "offline", True, 1.5)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("dry=yes", "show: dry=yes is not allowed: true or false."),
        ("days=inf", "show: days=inf is not allowed: a number that is not negative."),
        ("mode=ofline", "show: mode=ofline is not allowed: online, offline. Did you mean 'offline'?"),
        ("select='a", "show: select='a is not allowed: patterns on run ids and key=value filters, "
         "quotes in pairs."),
        ("rnus=a", "show: unknown key rnus; allowed: runs, select, name, mode, dry, days. "
         "Did you mean 'runs'?"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_gets_the_key_the_value_and_what_is(argument, sentence):
    with pytest.raises(UserError) as caught:
        read_arguments("show", [argument], ShowKeys)
    assert str(caught.value) == sentence


def test_a_word_too_many_is_named():
    with pytest.raises(UserError, match="show: 'second' is not a key=value argument"):
        read_arguments("show", ["first", "second"], ShowKeys, n_words=1)


def test_a_verb_without_keys_says_so():
    with pytest.raises(UserError, match="unknown key x; allowed: none"):
        read_arguments("fetch", ["x=1"], Keys)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "runs"
    for method in ("awq", "faq"):
        write_toy_run(folder, method, run_id=f"toy-{method}")
    write_toy_run(folder, "rtn", run_id="toy-rtn", status="failed", error="broke")
    return folder


def test_two_runs_are_compared_in_the_terminal_and_on_a_page(pair, tmp_path, capsys):
    assert main(["compare", "toy-faq", "toy-awq", f"runs={pair}", f"reports={tmp_path}"]) == 0
    out = capsys.readouterr().out
    for words in ("ahead on this one calibration set in perplexity", "Keys that differ",
                  "Metrics, A - B", "Items that flipped", "Linears: where A errs more",
                  "Windows whose loss"):  # fmt: skip
        assert words in out
    assert "quant.scale" in out and "calibration.n_samples" not in out
    assert (tmp_path / "compare" / "toy-faq--toy-awq.html").is_file()


def test_a_page_is_written_where_it_is_wanted_or_not_at_all(pair, tmp_path):
    command = ["compare", "toy-faq", "toy-awq", f"runs={pair}", f"reports={tmp_path}"]
    assert main([*command, "html=none"]) == 0
    assert not list(tmp_path.iterdir())
    assert main([*command, f"html={tmp_path / 'x.html'}"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.parametrize("words", [["watch", "runs=LONG"], ["report", "runs=RUNS", "reports=LONG"]])
def test_a_path_that_the_system_does_not_take_is_one_sentence(pair, capsys, words):
    words = [word.replace("LONG", "n" * 300).replace("RUNS", str(pair)) for word in words]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "the path is too long" in said and "Traceback" not in said


@pytest.mark.parametrize("key", ["reports", "html"])
def test_a_page_that_cannot_be_written_is_told_of_by_the_key_that_was_set(pair, tmp_path, capsys, key):
    (tmp_path / "file").write_text("")
    command = ["compare", "toy-faq", "toy-awq", f"runs={pair}"]
    assert main([*command, f"{key}={tmp_path / 'file' / 'x'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is a file, not a folder" in said and f"or set {key} to a" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy-faq"], "needs the names of two runs"),
        (["toy-faq", "toy-awk"], "Did you mean 'toy-awq'"),
        (["toy-faq", "toy-rtn"], "did not finish"),
        (["toy-faq", "toy-awq", "third"], "not a key=value"),
        (["toy-faq", "toy-awq", "htlm=x"], "Did you mean 'html'"),
    ],
)
def test_a_mistake_in_a_comparison_is_one_sentence(pair, capsys, words, message):
    assert main(["compare", *words, f"runs={pair}"]) == 2
    assert message in capsys.readouterr().err


def test_comparing_needs_no_torch(pair):
    code = (
        f"import sys; from faqbench.cli import main; main(['compare', 'toy-faq', 'toy-awq', "
        f"'runs={pair}', 'html=none'])\n"
        "print([m for m in ('torch', 'transformers', 'hydra', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
