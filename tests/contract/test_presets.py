"""Every preset of quant/ runs from calibration to record, and every family with every kind of method."""

from importlib import resources

import pytest
import yaml

from faqbench.config import run_id
from faqbench.config.section import conf_dir
from faqbench.records import read_run

EXPERIMENTS = sorted(conf_dir().glob("experiment/*.yaml"))
# Of another tool's checkpoint: see tests/integration/test_foreign.py.
FOREIGN = {"checkpoint"}
PRESETS = {p.stem for p in conf_dir().glob("quant/*.yaml") if not p.name.startswith("_")}
PRESETS = sorted(PRESETS - FOREIGN)
DESIGN = {
    "fp", "rtn", "awq", "faq", "gptq", "qep", "qep-gptq", "qep-awq", "qep-faq", "loaq", "loaq-gptq",
    "gptq-strong", "gptaq", "foem", "rescomp", "qronos", "gptaq-strong", "qronos-strong",
    "qep-gptq-strong", "loaq-gptq-strong", "qep-onecompression", "omniquant", "lrquant", "lrquant-plus",
    "signround",
}  # fmt: skip
# Together they have every choice of every stage.
CHOSEN = ("awq", "faq-gptq", "qep-faq", "loaq-gptq", "gptaq-strong", "foem", "rescomp", "qronos")
LEARNED = ("omniquant", "lrquant", "lrquant-plus", "signround")
GRIDS = ("bits=2 group_size=-1", "symmetric=true", "bits=8")
ROLES = {"qkv", "o", "gate_up", "down"}
# The roles of which nothing is known: their inputs are not looked at.
SILENT = {"qep": {"down"}, "qep-onecompression": {"down"}}
SILENT |= dict.fromkeys(("rtn", "w8a8", "w4a8", "w4a4", "hadamard-rtn"), ROLES)


@pytest.fixture
def run(run_cell):
    # A few steps, where blocks are learned at all.
    return lambda *overrides: run_cell("model=tiny-llama", "quant.refinement.steps=5", *overrides)


def test_the_presets_of_the_design_are_all_there():
    assert set(PRESETS) >= DESIGN


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_and_passes_its_gates(run, preset):
    experiment, data = run(f"quant={preset}", "evaluation.protocols=[wikitext2-32]", "limit=4")
    assert data.record.status == "finished"
    assert [g for g in data.record.gates if not g.passed] == []
    assert read_run(experiment.paths.runs / run_id(experiment)).record == data.record
    assert_layers(data, preset)


def assert_layers(data, preset):
    if preset == "fp":
        assert data.layers.empty
        return
    assert len(data.layers) == 2 * 7
    unknown = set(data.layers.loc[data.layers["relative_error"].isna(), "role"])
    assert unknown == SILENT.get(preset, set())
    assert data.record.bits_per_weight >= data.layers["bits"].min()


@pytest.fixture
def agree(cells):
    """Compare a cell's plans with what its run asked for, entry by entry."""

    def check(data):
        before, after = cells.plans[data.record.run_id]
        uses = data.record.extra["stage_keys"]
        asked = [(use["entry"].partition("/")[0], use["title"]) for use in uses]
        made = {(use["entry"].partition("/")[0], use["title"]) for use in uses if not use["cached"]}
        assert sorted((n.kind, n.title) for n in before if n.is_asked) == sorted(asked)
        assert {(n.kind, n.title) for n in before if n.is_due} == made
        assert {use["entry"] for use in uses} <= {n.entry for n in after if n.exists}
        assert not any(n.is_due for n in after)

    return check


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_of_every_preset_is_its_run(run, agree, preset):
    agree(run(f"quant={preset}", "evaluation.protocols=[wikitext2-32]", "limit=4")[1])


@pytest.mark.parametrize("scenario", ["label-leak", "random-tokens", "noise-injected"])
def test_the_plan_of_a_scenario_is_its_run(run, agree, scenario):
    one = ("quant=gptq", f"scenario={scenario}", "evaluation.protocols=[wikitext2-32]", "limit=4")
    agree(run(*one, "evaluation.kl=false")[1])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_plan_of_every_experiment_is_its_run(run, agree, path):
    params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    # For another tool an environment would be installed, for minutes: see integration/test_foreign.py.
    quant = [name for name in params["quant"].split(",") if not name.startswith("external/")][-1]
    scored = ("evaluation.protocols=[wikitext2-32]", "evaluation.tasks=[]", "limit=4")
    agree(run(f"experiment={path.stem}", f"quant={quant}", *scored)[1])


@pytest.mark.packaged
def test_the_plan_of_packaged_tasks_and_protocols_is_their_run(run, agree):
    scored = ("evaluation.protocols=[heldout-wiki-32]", "evaluation.tasks=[arc_easy_validation]")
    agree(run("quant=awq", "calibration.domain=wiki", *scored, "limit=4")[1])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("preset", (*CHOSEN, "lrquant-plus", "signround"))
def test_every_choice_of_every_stage_runs_on_every_kind_of_grid(run, preset, grid):
    assert_layers(run(f"quant={preset}", *grid.split())[1], preset)


@pytest.mark.parametrize("preset", CHOSEN[:4])
def test_eight_bits_are_closer_to_full_precision_than_two(run, preset):
    _, two = run(f"quant={preset}", "bits=2", "group_size=-1")
    _, eight = run(f"quant={preset}", "bits=8")
    assert eight.layers["relative_error"].mean() < two.layers["relative_error"].mean() / 10


def test_a_records_layers_say_which_strengths_were_searched_and_its_config_which_grid(run):
    search = ("quant=qep-gptq", "quant.correction.strength=search")
    _, data = run(*search, "symmetric=true", "quant.symmetric_grid=full_range")
    searched = data.layers.set_index("role")["correction_strength"]
    assert searched.drop("down").between(0, 1).all() and searched["down"].isna().all()
    assert data.record.config["quant"]["symmetric_grid"] == "full_range"
    assert [g for g in data.record.gates if not g.passed] == []


def test_the_chosen_presets_have_every_choice_of_every_stage(compose):
    presets = {p: compose(f"quant={p}").quant for p in PRESETS if p not in ("fp", "rtn")}
    presets = {p: quant for p, quant in presets.items() if quant.activations.bits is None}
    for stage in ("scale", "clip", "correct", "round"):
        there = {getattr(quant, stage) for quant in presets.values()}
        assert {getattr(presets[name], stage) for name in CHOSEN} == there
    there = {quant.refine for quant in presets.values()}
    assert {presets[name].refine for name in (*LEARNED, "awq")} == there


def test_the_blocks_of_a_rotated_model_are_learned_too(run):
    _, data = run("quant=signround", "quant.rotate=hadamard", "quant.rotation.places=[R1,R2,R4]")
    assert (data.layers["refine_error"] < data.layers["refine_start"]).any()
    assert [g.name for g in data.record.gates if not g.passed] == []


TINY = sorted(p.stem for p in conf_dir().glob("model/tiny-*.yaml"))
FAMILIES = sorted(
    f.name.removesuffix(".yaml")
    for f in (resources.files("faqbench.models") / "families").iterdir()
    if f.name.endswith(".yaml")
)
MODEL_TYPES = {
    yaml.safe_load((conf_dir() / f"model/{name}.yaml").read_text())["random"]["model_type"] for name in TINY
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_each_of_its_model_types_has_a_tiny_model(family):
    text = (resources.files("faqbench.models") / "families" / f"{family}.yaml").read_text()
    assert f"tiny-{family}" in TINY
    assert set(yaml.safe_load(text)["model_types"]) <= MODEL_TYPES


@pytest.mark.parametrize("quant", ["awq", "faq", "gptaq-strong", "qep", "qronos", "lrquant-plus"])
@pytest.mark.parametrize("name", TINY)
def test_every_tiny_model_is_quantized(run_cell, name, quant):
    options = ["quant.search.gqa_scale=repeat", "quant.refinement.steps=3"]
    protocol = "evaluation.protocols=[wikitext2-32]"
    _, data = run_cell(f"model={name}", f"quant={quant}", *options, protocol, "limit=2")
    assert [g for g in data.record.gates if not g.passed] == []
    known = data.layers[data.layers["relative_error"].notna()]
    assert known["relative_error"].between(0, 0.5).all()
