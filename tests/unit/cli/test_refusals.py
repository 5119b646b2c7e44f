"""Command lines that Hydra would take and drop, or word badly: one sentence, exit code 2, nothing run."""

import shlex

import pytest

from faqbench.cli import cells, main


@pytest.fixture
def refusal(capsys, monkeypatch, tmp_path):
    """Run a command line that must be refused, and return its sentence."""
    monkeypatch.chdir(tmp_path)

    def ran(*_, **__):
        raise AssertionError("a cell was run")

    monkeypatch.setattr(cells, "run_cell", ran)

    def run(*arguments):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("faqbench: ") and not (tmp_path / "runs").exists()
        return line.removeprefix("faqbench: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config-name", "x"], "--config-name is not supported; put your settings into FOLDER/"),
        (["--config-name=x", "--cfg=job"], "--config-name is not supported"),
        (["--config-path", "x"], "--config-path is not supported"),
        (["--experimental-rerun", "x"], "not supported; rerun=true repeats a cell."),
        (["--package", "x"], "--package says how a configuration is shown; it needs --cfg job."),
        (["--resolve"], "--resolve says how a configuration is shown"),
        (["--config-dir", "no-such"], "--config-dir no-such is not a folder."),
        (["--run", "experiment=quickstart"], "--run asks for a single cell"),
    ],
)
def test_a_flag_that_would_not_be_followed_is_refused(arguments, sentence, refusal):
    assert sentence in refusal(*arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quant=[awq,rtn]"], "quant=[awq,rtn] would merge several choices into one"),
        (["-m", "quant=[awq,rtn],faq"], "a cell for each with -m quant=awq,rtn."),
        (["model=[tiny-llama,tiny-qwen3]"], "would merge several choices into one"),
        (["hydra/launcher=[basic,joblib]"], "would merge several choices into one"),
        (["-m", "experiment=quickstart,study"], "names several sweeps; run experiment=quickstart"),
    ],
)
def test_choices_that_would_be_merged_are_refused(arguments, sentence, refusal):
    assert sentence in refusal(*arguments)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("quant=awq,rtn", "-m quant=awq,rtn runs a cell for each."),
        ("bits=range(2,4)", "-m bits=range(2,4) runs a cell for each."),
        ("evaluation.tasks=a,b", "evaluation.tasks=[a,b] is one list"),
        ("calibration.domain=a,b.txt", "'calibration.domain=\"a,b.txt\"' is one text"),
    ],
)
def test_several_values_for_one_cell_are_answered_with_what_works(line, advice, refusal):
    text = refusal(line)
    assert text.startswith(f"{line} gives several values to a single cell: -m {line}")
    assert advice in text


@pytest.mark.parametrize(
    "value", ["a&b.txt", "müller.txt", "epoch=3.txt", "a'b.txt", "a#b.txt", 'a"b.txt', "x(1).txt"]
)
def test_the_value_that_the_refusal_quotes_is_read_as_it_was_meant(value, refusal, compose):
    text = refusal(f"calibration.domain={value}")
    assert "quote the value: 'calibration.domain=" in text
    (quoted,) = shlex.split(text.partition("quote the value: ")[2].partition(" (the outer")[0])
    assert compose("model=tiny-llama", quoted).calibration.domain == value


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluation.tasks=arc"], "it is a list, in brackets, as in evaluation.tasks=[arc]."),
        (["tracking.tags=x"], "as in tracking.tags=[x]."),
        (["calibration.mixture=wiki"], "in braces, as in calibration.mixture={NAME: VALUE}."),
        (["bits=[3,4]"], "it is one value and no list; -m bits=3,4 runs a cell for each."),
        (["model.path=123"], 'model.path=123 is not allowed: it should be a text; quote it, as in \\"123'),
        (["paths.runs=5"], 'quote it, as in \\"5\\".'),
        (["symmetric=1"], "it should be true or false."),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_answered_in_the_command_lines_spelling(arguments, sentence, refusal):
    assert sentence in refusal("model=tiny-llama", *arguments)


def test_an_unknown_key_of_hydras_is_answered_with_the_keys_there(refusal):
    text = refusal("-m", "hydra/launcher=joblib", "hydra.launcher.n_job=3")
    assert text.startswith("Unknown key hydra.launcher.n_job; keys there: n_jobs, backend, ")
    assert text.endswith("Did you mean 'n_jobs'?")
    assert "keys there: none." in refusal("hydra.launcher.n_jobs=3")
    assert "Did you mean 'launcher'?" in refusal("hydra.lancher.n_jobs=3")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("tracking.tags=[short,{long}]", "of 65 characters; a tag has 1 to 64."),
        ("tracking.tags=['']", "of 0 characters; a tag has 1 to 64."),
        ("tracking.project='a/b'", "tracking.project=a/b is not allowed: a name of 1 to 128"),
        ("tracking.entity='a:b'", "tracking.entity=a:b is not allowed: a name of 1 to 128"),
    ],
)
def test_what_wandb_would_refuse_after_the_work_is_refused_before(setting, sentence, refusal):
    setting = setting.replace("{long}", "x" * 65)
    assert sentence in refusal("model=tiny-llama", "tracking=wandb", setting)


def test_other_services_have_rules_of_their_own(compose):
    made = compose("model=tiny-llama", "tracking=mlflow", "tracking.project='a/b'")
    assert made.tracking.project == "a/b"


def test_terms_that_nobody_accepted_refuse_a_whole_sweep_but_not_its_plan(monkeypatch, tmp_path, capsys):
    def ran(*_, **__):
        raise AssertionError("a cell was run")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells, "run_cell", ran)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    sweep = ["-m", "model=gemma3-270m", "quant=rtn,awq", "tracking=none"]
    assert main(sweep) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("bring it with 'faqbench fetch gemma3-270m accept_terms=true'.")
    assert not list((tmp_path / "runs").glob("gemma*"))
    assert main(["plan", *sweep]) == 0
