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
        (["--cfg", "jobb"], "--cfg jobb is not allowed: job, hydra, all. Did you mean 'job'?"),
        (["--package"], "--package/-p: expected one argument."),
        (["-x"], "-x is not a flag; usual ones are -m, --cfg job"),
        (["--cfgg", "job"], "Did you mean '--cfg'?"),
        (["bits=3", "-m", "seed=1"], "seed=1 stands apart from other overrides; write flags before"),
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


def test_a_key_of_hydras_is_checked_beside_a_sweep_over_choices_too(refusal):
    sweep = ["-m", "model=tiny-llama", "quant=rtn,awq"]
    text = refusal(*sweep, "hydra/launcher=joblib", "hydra.launcher.n_job=2")
    assert text.startswith("Unknown key hydra.launcher.n_job;") and "Did you mean 'n_jobs'?" in text
    assert refusal(*sweep, "hydra.sweeper.parms=2").endswith("Did you mean 'params'?")


@pytest.mark.parametrize(
    ("n_jobs", "sentence"),
    [
        ("0", "hydra.launcher.n_jobs=0 is not allowed: how many cells run at once, or -1"),
        ("x", "hydra.launcher.n_jobs=x is not allowed: Value 'x' of type 'str' could not be"),
    ],
)
def test_a_launcher_that_could_start_nothing_is_refused(n_jobs, sentence, refusal):
    sweep = ["-m", "model=tiny-llama", "quant=rtn,awq", "hydra/launcher=joblib"]
    assert sentence in refusal(*sweep, f"hydra.launcher.n_jobs={n_jobs}")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("bits=${nope}", "bits refers to ${nope}, and there is no such key."),
        ("bits=${sed}", "bits refers to ${sed}, and there is no such key. Did you mean 'seed'?"),
        ("bits=${nope:1}", "bits cannot be had: Unsupported interpolation type nope."),
        ("~seed", "~seed takes away seed, which calibration.seed refers to; set it to another value"),
    ],
)
def test_a_reference_to_what_there_is_not_is_one_sentence(line, sentence, refusal):
    assert refusal("model=tiny-llama", line).startswith(sentence)


def test_a_field_of_a_random_model_that_is_misspelt_gets_the_nearest(refusal):
    text = refusal("model=tiny-llama", "model.random.hiden_size=64")
    assert "keys there: model_type, seed, " in text and text.endswith("Did you mean 'hidden_size'?")
    text = refusal("plan", "model=tiny-llama", "+model.random.hiden_size=64")
    assert "hiden_size=64 is nothing that transformers reads for model_type=llama. Did you" in text


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "calibration.domain=wiki,wikki",
            "calibration.domain: Unknown domain 'wikki'. Did you mean 'wiki'?",
        ),
        ("++calibration.mixture={wikki: 1}", "calibration.mixture: Unknown domain 'wikki'."),
        ("scenario.domain=wikki", "scenario.domain: Unknown domain 'wikki'."),
        ("calibration.domain=none.txt", "calibration.domain: Could not read the file 'none.txt': no such"),
        ("evaluation.protocols=[heldout-wikki-512]", "names the domain 'wikki', not one of"),
    ],
)
def test_a_text_that_there_is_not_is_found_before_any_cell_runs(
    line, sentence, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    sweep = ["quant=awq,rtn", "tracking=none", line]
    hub = ["model=qwen3-0.6b", "model.hub_id=nobody/nothing"]  # not here, so that nothing is known of it
    for model in (["model=tiny-llama"], hub):
        for verb in (["plan"], []):
            assert main([*verb, "-m", *model, *sweep]) == 2
            assert sentence in capsys.readouterr().err
        assert not any((tmp_path / "runs").glob("*/record.json"))


@pytest.mark.parametrize("key", ["path", "hub_id"])
def test_a_checkpoint_that_is_not_there_is_named_as_it_was_typed(key, refusal):
    text = refusal("quant=checkpoint", f"model.{key}=no/such", "model.parent=tiny-llama")
    assert text.startswith(f"model.{key}=no/such ") and "quant.checkpoint" not in text
    text = refusal("quant=checkpoint", f"model.{key}=no/such", "model.parent=tiny-lama")
    assert text.startswith("model.parent=tiny-lama is not known")


@pytest.mark.parametrize("key", ["path", "hub_id"])
def test_a_checkpoint_without_its_parent_is_asked_for_it(key, refusal):
    text = refusal("quant=checkpoint", "model=tiny-llama", f"model.{key}=no/such")
    assert f"model.{key}=no/such has no model.parent beside it" in text


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
