"""Command lines: what they compose to, and the sentence for each that cannot be composed."""

import shutil
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from faqbench import hardware
from faqbench.cli import cells, composing, main
from faqbench.cli.composing import CONFIG_NAME, compose_cells, only_shows, parse_flags, to_experiment
from faqbench.config import UserError, run_id
from faqbench.hardware import FastDtype
from faqbench.records import find_runs

ROOT = Path(__file__).parents[3]
BY_HYDRA = "hydra.sweep.subdir=own"  # cells are composed where they run, as those of other launchers are


def request(*arguments):
    return compose_cells(parse_flags(arguments))


def mistake(*arguments):
    with pytest.raises(UserError) as caught:
        request(*arguments)
    return str(caught.value)


def test_no_argument_is_the_embedded_default():
    (experiment,) = request().experiments
    found = (experiment.model.name, experiment.quant.name, experiment.bits)
    assert found == ("smollm2-135m", "awq", 3)


def test_knobs_reach_the_groups_that_use_them():
    (e,) = request("bits=4", "group_size=32", "seed=7", "window=1", "gamma=0.5").experiments
    assert (e.quant.bits, e.quant.group_size, e.calibration.seed) == (4, 32, 7)
    assert (e.quant.preview.window, e.quant.preview.gamma) == (1, 0.5)


def test_the_group_size_defaults_to_the_models():
    (experiment,) = request("model=qwen3-8b").experiments
    assert experiment.quant.group_size == 128


def test_a_yaml_is_parsed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    mine = tmp_path / "quant" / "mine.yaml"
    mine.parent.mkdir()
    asked = ("--config-dir", str(tmp_path), "quant=mine", "model=tiny-llama")
    mine.write_text("defaults: [rtn, _self_]\nclip: search\n")
    assert request(*asked).experiments[0].quant.clip == "search"
    parsed, parse = [], OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: parsed.append(file.name) or parse(file))
    assert request(*asked).experiments[0].quant.clip == "search" and parsed == []
    mine.write_text("defaults: [rtn, _self_]\nclip: none\nround: nearest\n")
    assert request(*asked).experiments[0].quant.clip == "none"
    assert parsed == [str(mine)]


def test_a_misspelt_choice_gets_all_choices_and_the_nearest():
    text = mistake("quant=fqa")
    assert text.startswith("quant=fqa is not known; allowed: awq, ")
    assert text.endswith("Did you mean 'faq'?")
    assert "_stages" not in text


def test_a_value_that_is_not_allowed_names_its_bounds():
    assert mistake("bits=9") == "bits=9 is not allowed: it should be less than or equal to 8."


@pytest.mark.parametrize(
    ("argument", "offered"),
    [
        ("seeed=1", "seed"),
        ("quantt=faq", "quant"),
        ("quant.preview.widow=3", "window"),
        ("calibration.n_sample=3", "n_samples"),
        ("+bit=3", "bits"),
    ],
)
def test_an_unknown_key_gets_the_nearest_spelling(argument, offered):
    key = argument.lstrip("+").partition("=")[0]
    text = mistake(argument)
    assert f"Unknown key {key}" in text and f"Did you mean '{offered}'?" in text


@pytest.mark.parametrize(
    "argument", ["quant=awq,faq", "bits", "repot", "~bits", "model=null", "bits=[", "=3", "quant="]
)
def test_what_hydra_cannot_read_is_one_line(argument):
    text = mistake(argument)
    assert text and "\n" not in text


def test_all_mistakes_of_a_sweep_are_listed_together_each_once():
    text = mistake("-m", "model=tiny-llama", "quant=awq,faq", "bits=9,3,10")
    assert text.count("bits=9 is not allowed") == text.count("bits=10 is not allowed") == 1


def test_a_mistake_in_the_last_cell_is_found():
    assert "seed=-1" in mistake("-m", "model=tiny-llama", "seed=0,1,-1")


def test_a_sweep_is_the_product_of_its_lists_in_their_order():
    found = request("-m", "model=tiny-llama", "quant=rtn,faq", "bits=3,4")
    assert found.is_sweep
    cells_of = [(e.quant.name, e.bits) for e in found.experiments]
    assert cells_of == [("rtn", 3), ("rtn", 4), ("faq", 3), ("faq", 4)]


def test_quickstart_is_a_sweep_of_four_cells_at_three_bits():
    found = request("experiment=quickstart")
    assert found.is_sweep
    assert [e.quant.name for e in found.experiments] == ["fp", "rtn", "awq", "faq"]
    assert {e.bits for e in found.experiments} == {3}


def test_a_named_study_takes_overrides_like_any_other_sweep():
    found = request("experiment=quickstart", "model=tiny-llama", "quant=rtn,faq", "bits=4")
    cells_of = [(e.model.name, e.quant.name, e.bits) for e in found.experiments]
    assert cells_of == [("tiny-llama", "rtn", 4), ("tiny-llama", "faq", 4)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "quant=fp,faq", "bits=3,4", "seed=range(0,2)"],
        ["experiment=quickstart"],
        ["experiment=quickstart", "quant=faq"],
        ["-m", "quant=choice(rtn,awq)", "gamma=0.5,0.9"],
        ["quant=rtn"],
    ],
)
def test_the_cells_that_are_checked_are_the_cells_that_hydra_runs(arguments, monkeypatch, tmp_path):
    arguments = [*arguments, "model=tiny-llama", f"paths.runs={tmp_path}", BY_HYDRA]
    ran = []

    def note(config, **_):
        ran.append(run_id(to_experiment(config)))
        return 0.0

    monkeypatch.setattr(cells, "run_cell", note)
    checked = {run_id(e) for e in request(*arguments).experiments}
    cells.run(arguments)
    assert len(ran) == len(checked) and set(ran) == checked


@pytest.mark.parametrize("more", [[], [BY_HYDRA]])
def test_an_override_that_only_the_swept_models_know_is_no_mistake(more, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(cells, "run_cell", lambda config, **_: ran.append(to_experiment(config)) or 0.0)
    arguments = ["-m", "model=tiny-llama,tiny-qwen2", "model.random.num_hidden_layers=2", "quant=rtn"]
    cells.run([*arguments, f"paths.runs={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep", *more])
    found = [(e.model.name, e.model.random["num_hidden_layers"]) for e in ran]
    assert found == [("tiny-llama", 2), ("tiny-qwen2", 2)]
    kept = OmegaConf.load(tmp_path / "sweep" / "multirun.yaml").hydra.overrides.task
    assert list(kept) == [*arguments[1:], f"paths.runs={tmp_path}"]


def test_a_cell_of_a_sweep_that_runs_as_it_was_composed_is_what_hydra_composes(monkeypatch, tmp_path):
    def configs(*more):
        ran = []

        def note(config, **_):
            task = [str(line) for line in HydraConfig.get().overrides.task]
            ran.append((OmegaConf.to_container(config, resolve=True), task, HydraConfig.get().job.num))

        monkeypatch.setattr(cells, "run_cell", note)
        cells.run(["-m", "model=tiny-llama", "quant=rtn,faq", "bits=4", f"paths.runs={tmp_path}", *more])
        return ran

    as_composed, by_hydra = configs(), configs(BY_HYDRA)
    assert as_composed == by_hydra and len(as_composed) == 2


@pytest.mark.parametrize(
    "choice",
    ["quant=faq", "quant=qep-faq", "model=gemma3-270m", "scenario=code-only", "evaluation=quick",
     "presearch=quick", "presearch=check"],
)  # fmt: skip
def test_a_cell_that_is_composed_quickly_is_what_hydra_composes(choice):
    values = ["bits=2", "seed=7", "gamma=0.5", "paths.runs=some/where", "calibration.n_samples=4"]
    of_other_keys = ["model.group_size=64", "quant.preview.window=2", "quant.search.loss=gram", "limit=3.0"]
    for lines in ([choice, *values], [choice, *of_other_keys], [choice, "calibration.seed=3", "seed=2"]):
        with composing.composer():
            quick = composing.QuickComposer()(lines)
            own = compose(CONFIG_NAME, overrides=lines)
            slow = OmegaConf.to_container(own, resolve=True)
        assert quick == slow
        assert repr(quick) == repr(slow)  # 3 is not 3.0


@pytest.mark.parametrize(
    "lines",
    [
        ["tracking.group=a", "++tracking.group=b"],
        ["bits=${seed}", "seed=3"],
        ["bits=3", "bits=2"],
        ["quant.search={loss:gram}", "quant.search.loss=attention"],
        ["report.title='a $ and \\\\ b'"],
        ["evaluation.tasks=[arc_easy]", "evaluation.protocols=[]"],
    ],
)
def test_what_is_more_than_values_of_keys_is_what_hydra_composes(lines):
    with composing.composer():
        quick = composing.QuickComposer()(lines)
        own = OmegaConf.to_container(compose(CONFIG_NAME, overrides=lines), resolve=True)
    assert quick == own


def test_a_yaml_that_changed_is_read_again(monkeypatch, tmp_path):
    shutil.copytree(composing.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(composing, "conf_dir", lambda: tmp_path / "conf")
    asked = ["quant=rtn", "model=tiny-llama", "bits=4"]
    assert request(*asked).experiments[0].quant.name == "rtn"
    rtn = tmp_path / "conf" / "quant" / "rtn.yaml"
    rtn.write_text(rtn.read_text().replace("name: rtn", "name: renamed"))
    assert request(*asked).experiments[0].quant.name == "renamed"


def test_a_folder_of_ones_own_may_change_between_two_commands(tmp_path):
    mine = tmp_path / "quant" / "mine.yaml"
    mine.parent.mkdir()
    for name in ("one", "two"):
        mine.write_text(f"defaults: [rtn, _self_]\nname: {name}\n")
        assert request("--config-dir", str(tmp_path), "quant=mine").experiments[0].quant.name == name


def test_a_search_is_checked_by_its_first_guess():
    found = request("-m", "hydra.sweeper._target_=hydra_plugins.x.Search", "gamma=interval(0.5,1.0)")
    assert found.kind == "search" and found.experiments[0].gamma == 0.5
    assert "gamma=1.5" in mistake(
        "-m", "hydra.sweeper._target_=hydra_plugins.x.Search", "gamma=interval(1.5,2.0)"
    )


def test_a_folder_of_ones_own_adds_choices(tmp_path):
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "mine.yaml").write_text("defaults: [awq, _self_]\nname: mine\nclip: none\n")
    (experiment,) = request("--config-dir", str(tmp_path), "quant=mine").experiments
    assert (experiment.quant.name, experiment.quant.clip) == ("mine", "none")


def test_that_folder_may_have_any_name_also_where_hydra_runs_the_cell(tmp_path, monkeypatch):
    # Hydra reads each of these signs as something, and the last one at a name's end as something else.
    folder = tmp_path / ",=&'#( \"\\$%conf\\" / "quant"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [rtn, _self_]\nname: mine\n")
    ran = []
    monkeypatch.setattr(cells, "run_cell", lambda c, **_: ran.append(c.quant.name))
    sweep = ["-m", "quant=mine,rtn", "model=tiny-llama", f"paths.runs='{tmp_path}'", BY_HYDRA]
    cells.run([*sweep, "--config-dir", str(folder.parent)])
    assert sorted(ran) == ["mine", "rtn"]


def test_a_pattern_of_choices_is_a_sweep_over_those_that_a_user_can_choose(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(cells, "run_cell", lambda c, **_: ran.append(c.quant.name))
    cells.run(["-m", "model=tiny-llama", "quant=glob(*awq*)", f"paths.runs={tmp_path}"])
    assert sorted(ran) == ["awq", "awq-gptq", "awq-noclip", "loaq-awq", "loaq-awq-gptq", "qep-awq"]
    every = {e.evaluation.name for e in request("-m", "evaluation=glob(*,exclude=paper)").experiments}
    there = {p.stem for p in (composing.conf_dir() / "evaluation").glob("*.yaml")}
    assert every == there - {"paper", "_protocol"}
    assert "quant=glob(z*) matches none of awq, " in mistake("-m", "quant=glob(z*)")


@pytest.mark.parametrize("flag", ["--help", "--cfg=job", "--info", "--hydra-help"])
def test_flags_that_only_show_something_run_nothing(flag):
    assert only_shows(parse_flags([flag]))


def test_plain_overrides_run():
    assert not only_shows(parse_flags(["quant=faq"]))


@pytest.fixture
def fast(monkeypatch):
    """Let this machine multiply a dtype fast; its GPU, if it had one, bfloat16."""

    def make(dtype):
        def answer(device):
            chosen = "bfloat16" if device.type == "cuda" else dtype
            return FastDtype(dtype=chosen, reason="it says so")

        monkeypatch.setattr(hardware, "fast_dtype", answer)

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_is_what_the_device_multiplies_fast_and_the_run_is_named_by_that(fast, dtype):
    fast(dtype)
    (auto,) = request("model=tiny-llama", "device=cpu").experiments
    (spelled,) = request("model=tiny-llama", "device=cpu", f"dtype={dtype}").experiments
    assert auto == spelled and auto.dtype == dtype and run_id(auto) == run_id(spelled)


def test_another_dtype_is_another_run(fast):
    fast("float32")
    found = request("-m", "model=tiny-llama", "device=cpu", "dtype=auto,bfloat16,float32")
    assert [e.dtype for e in found.experiments] == ["float32", "bfloat16", "float32"]
    assert len({run_id(e) for e in found.experiments}) == 2


def test_each_device_of_a_sweep_gets_its_own_dtype(fast):
    fast("float32")
    found = request("-m", "model=tiny-llama", "device=cpu,cuda").experiments
    assert [e.dtype for e in found] == ["float32", "bfloat16"]


@pytest.mark.parametrize("arguments", [["-m", "quant=rtn,awq"], ["quant=rtn"]])
def test_a_cell_keeps_its_dtype_on_a_machine_that_multiplies_another_fast(
    arguments, fast, monkeypatch, tmp_path
):
    ran = []

    def elsewhere(config, **others):
        fast("bfloat16")
        ran.append(run_id(to_experiment(config)))
        return 0.0

    monkeypatch.setattr(cells, "run_cell", elsewhere)
    fast("float32")
    arguments = [*arguments, "model=tiny-llama", "device=cpu", f"paths.runs={tmp_path}", BY_HYDRA]
    named = {run_id(e) for e in request(*arguments).experiments}
    cells.run(arguments)
    assert set(ran) == named


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dtype=bf16", "dtype=bf16 is not allowed: it is 'auto', 'float32', 'bfloat16' or 'float16'. "
         "Did you mean 'bfloat16'?"),
        ("dtype=fp16", "Did you mean 'float16'?"),
        ("device=cpuu", "device=cpuu cannot be used here"),
        ("device=3", "device=3 is not allowed: it should be a text"),
    ],
)  # fmt: skip
def test_a_dtype_or_device_that_is_none_is_one_mistake(line, expected, capsys):
    assert main(["plan", "model=tiny-llama", line]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said and said.count("\n") == 0 and said.count("not allowed") <= 1


def test_the_committed_runs_are_cells_of_the_study_on_any_machine(fast):
    fast("float32")
    scenarios, seeds = ("matched", "few-samples"), (0, 4)  # of five each
    part = [f"scenario={','.join(scenarios)}", f"seed={','.join(map(str, seeds))}"]
    named = {run_id(e) for e in request("experiment=study", *part).experiments}
    configs = {record.run_id: record.config for record in find_runs(ROOT / "runs" / "study")[0]}
    committed = {
        name
        for name, config in configs.items()
        if config["scenario"]["name"] in scenarios and config["seed"] in seeds
    }
    assert len(configs) == 243 and len(committed) > 40 and committed <= named


def test_the_plan_says_which_dtype_and_why(fast, capsys, tmp_path):
    fast("float32")
    arguments = ["plan", "model=tiny-llama", "device=cpu", "quant=rtn", f"paths.runs={tmp_path}"]
    assert main(arguments) == 0
    assert "dtype=float32 on cpu: it says so." in capsys.readouterr().out
