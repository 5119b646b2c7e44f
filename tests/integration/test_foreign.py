"""Checkpoints of other tools, and other tools themselves, as cells beside ours."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from faqbench.cli import main
from faqbench.pipeline.foreign import _last_line
from faqbench.records import find_runs, read_run

from .conftest import new_workplace

LAYOUTS = ("compressed-tensors", "gptq_v2", "awq")
# What another tool does for these tests: it hands over a checkpoint that is there already.
DRIVER = """
import json, shutil, sys
request = json.load(open(sys.argv[1]))
print("quantizing to", request["bits"], "bits")
assert request["options"]["from"] is not None, "no luck"
shutil.copytree(request["options"]["from"], request["into"], dirs_exist_ok=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace with runs of 4 bits, exported to every layout."""
    place = new_workplace(tmp_path_factory.mktemp("foreign"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        patch.setenv("FAQBENCH_CACHE", str(place.root / "cache"))
        grid = ["bits=4", "quant.search.gqa_scale=repeat", "quant.scale_dtype=float16"]
        families = ["tiny-llama", "tiny-phi3"]
        for family in families:
            assert main(["-q", *place.cell, f"model={family}", "quant=awq", *grid]) == 0
        rtn = ["quant=rtn", "bits=4", "symmetric=true", "group_size=32", "quant.scale_dtype=float16"]
        assert main(["-q", *place.cell, "model=tiny-gemma3", *rtn]) == 0
        for run in [p.name for p in place.runs.glob("tiny-*")]:
            family = run.split("-")[1]
            for layout in ("gguf",) if family == "gemma3" else LAYOUTS:
                into = place.root / f"{family}-{layout}"
                assert main(["-q", "export", run, f"format={layout}", f"into={into}"]) == 0
        yield place


def evaluate(place, folder, family="tiny-llama", *more):
    return main(
        ["-q", *place.cell, "quant=checkpoint", f"model.path={folder}", f"model.parent={family}", *more]
    )


def record_of(place, start, made_from):
    records, _ = find_runs(place.runs)
    return next(
        r
        for r in records
        if r.status == "finished"
        and r.run_id.startswith(start)
        and str(r.config["quant"]["checkpoint"]["path"] or "").endswith(made_from)
    )


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_scores_as_the_run_that_it_was_exported_from(place, family, layout):
    assert evaluate(place, place.root / f"{family}-{layout}", f"tiny-{family}") == 0
    ours = record_of(place, f"tiny-{family}-awq", "")
    theirs = record_of(place, f"tiny-{family}-checkpoint", layout)
    assert theirs.config["quant"]["bits"] == 4 and not theirs.config["quant"]["symmetric"]
    assert theirs.bits_per_weight == pytest.approx(ours.bits_per_weight, rel=0.01)
    assert [g.name for g in theirs.gates if not g.passed] == []
    for metric in ours.metrics:  # of which the folding of scales changes the last digits
        assert theirs.metric(metric.task, metric.name).value == pytest.approx(metric.value, rel=1e-4)
    assert theirs.fingerprints["model"] == ours.fingerprints["model"]


def test_a_gguf_file_scores_as_the_run_that_it_was_exported_from(place):
    assert evaluate(place, place.root / "gemma3-gguf" / "model.gguf", "tiny-gemma3") == 0
    ours = record_of(place, "tiny-gemma3-rtn", "")
    theirs = record_of(place, "tiny-gemma3-checkpoint", "model.gguf")
    assert (theirs.config["quant"]["name"], theirs.config["quant"]["bits"]) == ("checkpoint-q4_0", 4)
    assert theirs.bits_per_weight == pytest.approx(ours.bits_per_weight)
    for metric in ours.metrics:
        assert theirs.metric(metric.task, metric.name).value == pytest.approx(metric.value, rel=1e-4)


def test_errors_of_a_checkpoints_linears_are_those_of_rounding_though_scales_were_folded(place):
    assert evaluate(place, place.root / "llama-gptq_v2") == 0
    run = record_of(place, "tiny-llama-checkpoint", "gptq_v2")
    layers = read_run(place.runs / run.run_id).layers
    assert len(layers) == 7 * 2 and layers["weight_error"].between(1e-4, 0.02).all()
    norms = [
        t
        for n, t in load_file(place.root / "llama-gptq_v2" / "model.safetensors").items()
        if "layernorm" in n
    ]
    assert max(float((norm - 1).abs().max()) for norm in norms) > 0.2


@pytest.fixture
def broken(place, tmp_path):
    """Copy a checkpoint, and change its config and tensors."""

    def change(config=None, settings=None, tensors=None):
        folder = tmp_path / "broken"
        shutil.copytree(place.root / "llama-gptq_v2", folder)
        own = json.loads((folder / "config.json").read_text())
        own["quantization_config"] |= settings or {}
        (folder / "config.json").write_text(json.dumps(own | (config or {})))
        kept = load_file(folder / "model.safetensors")
        save_file((tensors or (lambda t: t))(kept), folder / "model.safetensors")
        return folder

    return change


def without(*ends):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.endswith(ends)}


NORM, EXTRA = "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensors": without("0.mlp.up_proj.scales")}, "lacks 1 tensors of its parent: model.layers.0.mlp"),
        ({"tensors": without("0.mlp.up_proj.qweight")}, "lacks 1 tensors of its parent"),
        ({"tensors": lambda t: t | {EXTRA: t[NORM].clone()}}, "1 tensors that its parent does not have"),
        ({"tensors": lambda t: t | {NORM: t[NORM][:4].clone()}}, "it was made from another model"),
        ({"settings": {"quant_method": "exl9"}}, "of a format that is not read here: quant_method exl9"),
        ({"settings": {"bits": None}}, "of a format that is not read here"),
        ({"config": {"quantization_config": None}}, "says nothing of quantization"),
        ({"config": {"auto_map": {"AutoModel": "code.Model"}}}, "needs code of its own"),
        ({"config": {"rms_norm_eps": 0.5}}, "has rms_norm_eps=0.5, where its parent has"),
    ],
)
def test_a_checkpoint_that_is_not_its_parents_is_refused_in_a_sentence(place, broken, capsys, change, said):
    assert evaluate(place, broken(**change)) != 0
    assert said in " ".join(capsys.readouterr().err.split())


def test_pickles_are_not_read(place, broken, capsys):
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert evaluate(place, folder) == 2
    assert "as pickles (pytorch_model.bin)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["quant=external"], "take one of quant=external/autoround, quant=external/gptqmodel-gptq"),
        (["quant=checkpoint"], "needs model.path=FOLDER or model.hub_id=NAME"),
        (
            ["quant=checkpoint", "quant.checkpoint.path=nowhere"],
            "quant.checkpoint.path=nowhere is not there",
        ),
        (["quant=external/autoround", "quant.scale=awq"], "nothing is left to do for quant.scale=awq"),
        (["quant=external/autoround", "quant.external.requirements=[torch]"], "names no version"),
        (["quant=external/autoround", "quant.external.driver=autoruond"], "Did you mean 'autoround'?"),
    ],
)
def test_mistakes_are_found_before_any_work(place, capsys, overrides, said):
    assert main(["-q", *place.cell, *overrides]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_tool_is_run_once_on_the_cells_grid_and_is_a_row_beside_ours(place, capsys):
    driver = place.root / "copier.py"
    driver.write_text(DRIVER)
    tool = ["quant=external/autoround", f"quant.external.driver={driver}", "quant.external.requirements=[]"]
    tool += ["quant.name=copier", "quant.like=awq", "bits=4"]
    cell = ["-q", *place.cell, *tool]
    assert main([*cell, "+quant.external.options.from=null"]) == 2
    assert "copier.py failed on model=tiny-llama (AssertionError: no luck)" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main([*cell, f"+quant.external.options.from={place.root}/llama-gptq_v2"]) == 0
    run = record_of(place, "tiny-llama-copier", "")
    made = run.extra["checkpoint"]
    assert made["seconds"] > 0 and made["peak_memory_bytes"] > 2**20 and made["made_by"] == str(driver)
    (used,) = [use["entry"] for use in run.extra["stage_keys"] if use["entry"].startswith("external/")]
    assert (place.root / "cache" / "stages" / used / "log.txt").read_text() == "quantizing to 4 bits\n"
    assert main(["-q", "report", "name=tools", f"runs={place.runs}", f"reports={place.reports}"]) == 0
    page = (place.reports / "tools" / "report.md").read_text()
    assert "The same recipe by another tool" in page and "made by" in page


def test_what_failed_is_said_by_the_last_error_that_says_what(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "Collecting a\nERROR: Cannot install a==1 and b==2.\n\nTo fix this you could try to:\n"
        "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io\n"
    )
    assert _last_line(log) == "Cannot install a==1 and b==2"
    log.write_text("Traceback\nValueError: odd\n")
    assert _last_line(log) == "ValueError: odd"


def test_an_environment_that_cannot_be_installed_is_one_sentence_and_leaves_nothing(
    place, monkeypatch, capsys
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place.root))
    environments = place.root / "cache" / "environments"
    before = {p for p in environments.iterdir() if p.is_dir()} if environments.is_dir() else set()
    tool = ["quant=external/autoround", "quant.external.requirements=['no-such-tool==1.0']"]
    assert main(["-q", *place.cell, *tool]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no-such-tool==1.0 in an environment of its own, which could not be installed" in said
    assert "connect to a package index" in said
    assert {p for p in environments.iterdir() if p.is_dir()} == before
