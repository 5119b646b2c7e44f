"""From a run to a checkpoint that other tools load, and back."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from faqbench.cli import main
from faqbench.export import compressed_tensors, gguf_file
from faqbench.export.plain import examine
from faqbench.export.verify import judge
from faqbench.export.words import GPTQ, bits_of
from faqbench.quantization import Grid, QuantizedLinear
from faqbench.quantization.checkpoint import StoredLinears

from .conftest import new_workplace


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A workplace with runs of four families on stored scales, and a function that exports one."""
    place = new_workplace(tmp_path_factory.mktemp("exports"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        patch.setenv("FAQBENCH_CACHE", str(place.root / "cache"))
        cell = [c for c in place.cell if not c.startswith("model")]
        families = "model=tiny-llama,tiny-gemma3,tiny-qwen2,tiny-phi3"
        method = ["quant=awq", "quant.search.gqa_scale=repeat", "quant.scale_dtype=float16"]
        assert main(["-q", "-m", families, "bits=4", *method, *cell]) == 0
        symmetric = ["quant.scale_dtype=float16", "symmetric=true", "evaluation.kl=false", *cell]
        assert main(["-q", "model=tiny-llama", "quant=awq", "bits=8", *symmetric]) == 0
        assert main(["-q", "model=tiny-gemma3", "quant=rtn", "bits=4", *symmetric]) == 0
        assert main(["-q", "model=tiny-llama", "quant=rtn", "bits=4", *symmetric]) == 0
        method[-1] = "quant.scale_dtype=null"
        skip = 'quant.skip=["*.0.self_attn.v_proj","*.0.mlp.gate_proj"]'
        mixed = "quant.overrides=[{pattern: '*.1.*', bits: 3, group_size: null}]"
        assert main(["-q", "model=tiny-llama", "bits=5", *method, skip, mixed, *cell]) == 0
        assert main(["-q", "model=tiny-llama", "quant=fp", *cell]) == 0

        def export(start, layout, *more):
            (name,) = [p.name for p in place.runs.glob(f"{start}*") if p.is_dir()]
            into = place.root / f"{start}-{layout}{len(more)}"
            if not into.exists():
                assert main(["-q", "export", name, f"format={layout}", f"into={into}", *more]) == 0
            return into

        yield place, export


def judged(folder):
    """The verdict on a folder, taken in this process."""
    facts = json.loads((folder / "faqbench" / "facts.json").read_text())
    return {check.name: check for check in judge(facts, examine(folder)).checks}


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "phi3"])
@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq_v2", "awq"])
def test_what_is_exported_is_what_was_measured(exported, family, layout):
    _, export = exported
    checks = judged(export(f"tiny-{family}-awq-w4", layout))
    assert all(check.passed for check in checks.values()), checks
    assert checks["stored"].largest == 0
    if layout != "compressed-tensors":  # whose loader multiplies in the dtype of the scales
        assert checks["loaded"].largest == 0 and checks["logits"].largest < 1e-5


@pytest.mark.parametrize(
    ("layout", "bits_per_weight"),
    [("compressed-tensors", 4.5), ("gptq", 4.625), ("gptq_v2", 4.625), ("awq", 4.625), ("gguf", 4.5)],
)
def test_a_symmetric_grid_has_the_size_of_the_layout_that_it_is_written_in(
    exported, layout, bits_per_weight
):
    _, export = exported
    folder = export("tiny-llama-rtn-w4", layout)
    facts = json.loads((folder / "faqbench" / "facts.json").read_text())
    assert facts["bits_per_weight"] == bits_per_weight and facts["bits_per_weight_measured"] == 4.5
    checks = judged(folder)
    assert all(check.passed for check in checks.values()), checks
    assert checks["size"].largest < 1e-9
    more = f"The run counted 4.500; the rest is what `{layout}` stores beyond the run's grid."
    assert (more in (folder / "README.md").read_text()) == (bits_per_weight > 4.5)


@pytest.mark.parametrize(("bits", "symmetric"), [(3, False), (4, True), (4, False), (8, True)])
def test_the_bits_of_a_layout_are_those_of_what_it_packs(bits, symmetric):
    grid = Grid(bits=bits, group_size=32, symmetric=symmetric, scale_dtype="float16")
    kind = torch.int8 if symmetric else torch.uint8
    zero = None if symmetric else torch.ones(40, 2, dtype=kind)
    linear = QuantizedLinear(
        qvalue=torch.ones(40, 64, dtype=kind),
        scale=torch.ones(40, 2),
        zero_point=zero,
        input_scale=None,
        grid=grid,
    )
    packed = compressed_tensors.encode(linear)
    counted = sum(t.nbytes for name, t in packed.items() if name != "weight_shape")
    assert compressed_tensors.bits_of(linear) == 8 * counted
    if bits == 4:
        parts = GPTQ(name="gptq_v2").encode(linear)
        assert bits_of(linear) == 8 * sum(t.nbytes for name, t in parts.items() if name != "g_idx")
    if bits != 3:
        assert gguf_file.bits_of(linear) == 8 * gguf_file.encode(linear).nbytes


@pytest.mark.parametrize("start", ["tiny-llama-awq-w8", "tiny-gemma3-rtn-w4"])
def test_gguf_read_by_transformers_is_what_was_measured(exported, start):
    _, export = exported
    checks = judged(export(start, "gguf"))
    assert all(check.passed for check in checks.values()), checks
    assert checks["loaded"].largest == 0 and checks["logits"].largest < 1e-5


def test_skipped_linears_and_several_grids_are_folded_and_packed_too(exported):
    """In float32, whose product no loader rounds; two linears stay in full precision and are scaled."""
    _, export = exported
    folder = export("tiny-llama-awq-w5", "compressed-tensors")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert len(settings["config_groups"]) == 2 and len(settings["ignore"]) == 3
    checks = judged(folder)
    assert all(check.passed for check in checks.values()), checks
    assert checks["logits"].largest < 1e-5 and checks["logits"].tolerance == 1e-5


def test_an_export_holds_all_that_a_loader_and_a_reader_need(exported):
    _, export = exported
    folder = export("tiny-llama-awq-w4", "gptq_v2", "shard_gigabytes=0.0001")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", "manifest.json"} <= names
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {n for n in names if n.endswith(".safetensors")}
    assert len([n for n in names if n.endswith(".safetensors")]) > 1
    card = (folder / "README.md").read_text()
    facts = json.loads((folder / "faqbench" / "facts.json").read_text())
    for told in (facts["run_id"], "4.625 bits per weight", "| wikitext2-64 | perplexity |", "seed: 0"):
        assert told in card


def test_the_command_that_verifies_can_be_typed_as_it_is_printed(exported, capsys):
    place, _ = exported
    (run,) = [p.name for p in place.runs.glob("tiny-llama-rtn-w4*") if p.is_dir()]
    into = place.root / "two words"
    assert main(["-q", "export", run, "format=awq", f"into={into}"]) == 0
    printed = re.search("Verify it: (.*)", capsys.readouterr().out)
    assert printed and shlex.split(printed[1])[-2:] == ["verify", str(into)]


def test_verify_loads_a_folder_in_a_process_of_its_own(exported, capsys):
    _, export = exported
    folder = export("tiny-llama-awq-w4", "awq")
    assert main(["verify", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "28 of 28 linears" in told and f"PASS: {folder}" in told


def test_verify_names_what_differs(exported, capsys):
    place, export = exported
    changed = place.root / "changed"
    shutil.copytree(export("tiny-llama-awq-w4", "awq"), changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.scales"][0, 5] *= 2
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    assert main(["verify", str(changed)]) == 2
    assert "model.safetensors does not match its checksum" in capsys.readouterr().err
    checks = judged(changed)
    for name in ("stored", "loaded"):
        assert not checks[name].passed and checks[name].where == "model.layers.2.mlp.up_proj"
    assert not checks["logits"].passed and checks["size"].passed


def test_the_process_that_verifies_knows_nothing_of_our_models():
    code = "import sys, faqbench.export.plain; print([m for m in sys.modules if 'faqbench.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ["faqbench.export", "faqbench.layouts", "faqbench.export.plain"]
    assert sorted(ast.literal_eval(done.stdout)) == sorted(ours)


def test_what_is_measured_has_the_scales_that_are_stored(exported):
    """Codes from the cache give the same numbers, though v's and up's scales are rounded twice."""
    place, _ = exported
    (path,) = place.runs.glob("tiny-llama-awq-w4*/record.json")
    first = json.loads(path.read_text())
    stages = place.root / "cache" / "stages"
    (entry,) = [u["entry"] for u in first["extra"]["stage_keys"] if u["entry"].startswith("quantized/")]
    for name, linear in StoredLinears(stages / entry, torch.device("cpu")).items():
        assert torch.equal(linear.scale, linear.scale.half().float())
        is_read_scaled = name.endswith(("v_proj", "up_proj"))
        assert (linear.output_scale is not None) == is_read_scaled
    shutil.rmtree(stages / "perplexity")
    cell = [c for c in place.cell if not c.startswith("model")]
    method = ["quant=awq", "quant.search.gqa_scale=repeat", "quant.scale_dtype=float16", "bits=4"]
    assert main(["-q", "model=tiny-llama", *method, *cell, "rerun=true"]) == 0
    again = json.loads(path.read_text())
    assert [m["value"] for m in again["metrics"]] == [m["value"] for m in first["metrics"]]
    assert not again["stages"]["evaluate"]["cached"] and again["stages"]["quantize"]["cached"]


@pytest.mark.parametrize(
    ("start", "layout", "more", "told"),
    [
        ("tiny-llama-fp", "awq", [], "is full precision: there are no codes to export"),
        ("tiny-llama-awq-w5", "awq", [], "holds 4 bits, and this run has linears of"),
        ("tiny-llama-awq-w5", "gguf", [], "nearest .*group_size=32 symmetric=true.*Q4_0"),
        ("tiny-llama-awq-w4", "gguf", [], r"Q4_1 .* of this run's .* groups.*symmetric=true"),
        ("tiny-llama-awq-w4", "awk", [], "format=awk is not allowed.* Did you mean"),
        ("tiny-llama-awq-w4", "awq", ["into=."], "into=. exists"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(
    exported, capsys, start, layout, more, told
):
    place, _ = exported
    (name,) = [p.name for p in place.runs.glob(f"{start}*")]
    before = sorted(place.root.iterdir())
    into = [] if more else [f"into={place.root / 'new'}"]
    assert main(["export", name, f"format={layout}", *into, *more]) == 2
    said = capsys.readouterr().err
    assert re.search(told, said) and "Traceback" not in said
    assert sorted(place.root.iterdir()) == before


def changed(run, change):
    """Copy a run under another name, with another record."""
    record = json.loads((run / "record.json").read_text())
    change(record)
    other = shutil.copytree(run, run.with_name(f"changed-{run.name}"))
    (other / "record.json").write_text(json.dumps(record | {"run_id": other.name}))
    return other


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda record: record.update(status="failed", error="Traceback\nValueError: no luck"),
            "failed, so there is nothing to export: ValueError: no luck",
        ),
        (
            lambda record: record["fingerprints"].update(weights="0" * 64),
            "was made from other weights than model=tiny-llama has now",
        ),
    ],
)
def test_a_run_that_failed_or_had_other_weights_is_not_exported(exported, capsys, change, told):
    place, _ = exported
    (run,) = place.runs.glob("tiny-llama-awq-w4*")
    other = changed(run, change)
    before = sorted(place.root.iterdir())
    try:
        assert main(["export", other.name, "format=awq", f"into={place.root / 'new'}"]) == 2
    finally:
        shutil.rmtree(other)
    assert told in " ".join(capsys.readouterr().err.split())
    assert sorted(place.root.iterdir()) == before


def test_a_disk_that_is_too_small_is_known_before_anything_is_written(exported, capsys, monkeypatch):
    place, _ = exported
    (run,) = place.runs.glob("tiny-llama-awq-w4*")
    before = sorted(place.root.iterdir())
    usage = shutil.disk_usage(place.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert main(["export", run.name, "format=awq", f"into={place.root / 'new'}"]) == 2
    assert "has 1 kB free; free some space" in " ".join(capsys.readouterr().err.split())
    assert sorted(place.root.iterdir()) == before


def test_codes_that_are_gone_are_made_again_on_request_and_compared(exported, capsys):
    place, _ = exported
    (run,) = place.runs.glob("tiny-qwen2-awq-w4*")
    record = json.loads((run / "record.json").read_text())
    uses = record["extra"]["stage_keys"]
    (entry,) = [use["entry"] for use in uses if use["entry"].startswith("quantized/")]
    into = [f"into={place.root / 'again'}", "format=awq"]
    shutil.rmtree(place.root / "cache" / "stages" / entry)
    assert main(["export", run.name, *into]) == 2
    assert "requantize=true makes them again" in capsys.readouterr().err
    record["extra"]["codes_sha256"] = "0" * 64
    other = shutil.copytree(run, run.with_name("other"))
    (other / "record.json").write_text(json.dumps(record))
    assert main(["export", "other", *into, "requantize=true"]) == 2
    assert "quantizing again gave others" in capsys.readouterr().err
    shutil.rmtree(other)
    shutil.rmtree(place.root / "cache" / "stages" / entry)
    assert main(["-q", "export", run.name, *into, "requantize=true"]) == 0
    assert judged(place.root / "again")["stored"].passed


def test_a_folder_that_is_no_export_is_one_sentence(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "was not written by `faqbench export`" in capsys.readouterr().err


class Hub:
    """What the hub was asked, in the place of its client."""

    asked: ClassVar[list[tuple]] = []
    fails = False

    def create_repo(self, repo, **options):
        self.asked.append(("create", repo, options))

    def upload_folder(self, **options):
        if self.fails:
            raise OSError("the line went dead")
        self.asked.append(("upload", options["repo_id"], options["folder_path"]))
        return SimpleNamespace(commit_url="https://hub/a/b/commit/1")


@pytest.fixture
def hub(monkeypatch):
    importlib.import_module("datasets.load")  # else it would import the name while it is another's
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("faqbench.hub.hub_answers", lambda: True)
    return Hub


def test_an_upload_that_was_cut_short_goes_on_without_a_second_export(exported, hub, monkeypatch, capsys):
    place, export = exported
    into = export("tiny-gemma3-rtn-w4", "gguf")
    (run,) = [p.name for p in place.runs.glob("tiny-gemma3-rtn-w4*") if p.is_dir()]
    again = ["-q", "export", run, "format=gguf", f"into={into}", "push=a/b"]
    before = (into / "model.gguf").stat().st_mtime_ns
    monkeypatch.setattr(Hub, "fails", True)
    assert main(again) == 2
    assert "the hub did not take it as a/b (the line went dead)" in capsys.readouterr().err
    monkeypatch.setattr(Hub, "fails", False)
    assert main(again) == 0
    assert hub.asked[-2:] == [
        ("create", "a/b", {"private": True, "exist_ok": True}),
        ("upload", "a/b", into),
    ]
    assert (into / "model.gguf").stat().st_mtime_ns == before
    assert "Uploaded: https://hub/a/b/commit/1" in capsys.readouterr().out


def test_an_upload_without_a_token_is_refused_before_anything_is_written(
    exported, hub, monkeypatch, capsys
):
    place, _ = exported
    (run,) = [p.name for p in place.runs.glob("tiny-gemma3-rtn-w4*") if p.is_dir()]
    into = place.root / "never"
    ask = ["-q", "export", run, "format=gguf", f"into={into}"]
    assert main([*ask, "push=a/b/c"]) == 2
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([*ask, "push=a/b"]) == 2
    said = capsys.readouterr().err
    assert "push=a/b/c is no name of a repository" in said and "push=a/b needs a token" in said
    assert not into.exists()


def test_an_export_that_was_stopped_goes_on_and_ends_with_the_same_bytes(exported, monkeypatch):
    place, export = exported
    whole = export("tiny-llama-awq-w4", "gptq_v2", "shard_gigabytes=0.0001")
    (run,) = [p.name for p in place.runs.glob("tiny-llama-awq-w4*") if p.is_dir()]
    into = place.root / "stopped"
    ask = ["-q", "export", run, "format=gptq_v2", f"into={into}", "shard_gigabytes=0.0001"]
    n_packed, encode = [], GPTQ.encode

    def stop_near_the_end(self, linear):
        n_packed.append(1)
        if len(n_packed) == 27:
            raise KeyboardInterrupt
        return encode(self, linear)

    monkeypatch.setattr(GPTQ, "encode", stop_near_the_end)
    assert main(ask) == 130
    kept = sorted(p.name for p in (place.root / ".stopped.unfinished").glob("part-*.safetensors"))
    assert kept and not into.exists()
    n_packed[:] = [1] * 27
    assert main(ask) == 0
    assert 27 < len(n_packed) < 27 + 28  # the first parts were not packed again
    assert sorted(p.name for p in into.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (into / path.name).read_bytes()
    assert not list(place.root.glob(".stopped*"))
