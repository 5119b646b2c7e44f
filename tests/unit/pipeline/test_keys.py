"""Keys change with every input of a result and with nothing else; divergence as one stage of a sweep."""

import json

import numpy as np
import pytest
import torch
from toy_parts import LLAMA_SHAPE

from faqbench.assets import packaged
from faqbench.models import ModelHolder, fingerprint_tokenizer, load_model
from faqbench.models.sources import byte_tokenizer, random_model
from faqbench.pipeline import keys
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.graph import stages_of
from faqbench.stages import PlainProgress, StageCache

PRINTS = {
    "model": "m",
    "tokenizer": "t",
    "calibration": "c",
    "protocol/wikitext2-64": "p",
    "weights": "not in any key: the model's fingerprint has it",
}
SCORED = ("evaluation.protocols=[wikitext2-64]", "evaluation.tasks=[arc_easy_validation]")


@pytest.fixture
def keys_of(cell):
    """Return every key of a cell that quantizes with calibration, by its stage."""

    def make(*overrides, prints=PRINTS, device="cpu"):
        made = keys.Keys(cell("quant=awq", *SCORED, *overrides), prints, device)
        return {
            "statistics": made.statistics(),
            "quantized": made.quantized(),
            "reference": made.reference("wikitext2-64"),
            "perplexity": made.protocol("wikitext2-64"),
            "tasks": made.task("arc_easy_validation"),
        }

    return make


def changed(before, after):
    return {stage for stage in before if before[stage] != after[stage]}


FORWARD = {"statistics", "quantized", "reference", "perplexity", "tasks"}
SCORES = {"perplexity", "tasks"}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("model", FORWARD),
        ("tokenizer", {"tasks"}),
        ("calibration", FORWARD - {"reference"}),
        ("protocol/wikitext2-64", {"reference", "perplexity"}),
        ("weights", set()),
    ],
)
def test_a_fingerprint_changes_the_keys_of_what_depends_on_it(keys_of, name, stages):
    assert changed(keys_of(), keys_of(prints=PRINTS | {name: "other"})) == stages


@pytest.mark.parametrize(
    ("library", "stages"),
    [
        ("transformers", FORWARD),
        ("tokenizers", {"tasks"}),
        ("lm_eval", {"tasks"}),
        ("datasets", {"tasks"}),
        ("pandas", set()),
    ],
)
def test_a_library_changes_the_keys_of_what_it_computes(keys_of, monkeypatch, library, stages):
    before, installed = keys_of(), keys.library_version
    monkeypatch.setattr(keys, "library_version", lambda name: "9" if name == library else installed(name))
    assert changed(before, keys_of()) == stages


def test_torch_and_the_kind_of_device_change_every_key(keys_of, monkeypatch):
    before = keys_of()
    assert changed(before, keys_of(device="cuda")) == FORWARD
    monkeypatch.setattr(torch, "__version__", "9")
    assert changed(before, keys_of()) == FORWARD


def test_the_packaged_datas_hash_changes_the_keys_of_packaged_tasks(keys_of, monkeypatch):
    before = keys_of()
    monkeypatch.setattr(keys, "packaged_data_key", lambda: {"recipe": "another"})
    assert changed(before, keys_of()) == {"tasks"}
    assert packaged.packaged_data_key() == before["tasks"]["data"]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("dtype=bfloat16", {"reference", "perplexity", "tasks"}),
        ("calibration.dtype=bfloat16", FORWARD - {"statistics", "reference"}),
        ("calibration.batch_size=1", FORWARD - {"reference"}),
        ("calibration.tokens=drop_first", FORWARD - {"reference"}),
        ("bits=4", FORWARD - {"statistics", "reference"}),
        ("evaluation.batch_tokens=64", {"reference", "perplexity", "tasks"}),
        ("evaluation.batch_size=3", {"tasks"}),
        ("evaluation.add_bos=true", {"tasks"}),
        ("limit=3", {"tasks"}),
        ("evaluation.keep_items=false", set()),
        ("model.notes=other", set()),
        ("gamma=0.5", set()),
        ("tracking=wandb", set()),
    ],
)
def test_a_setting_changes_the_keys_of_what_it_decides(keys_of, override, stages):
    assert changed(keys_of(), keys_of(override)) == stages


@pytest.fixture
def model_print(compose, tmp_path):
    """Save a small checkpoint with changes to its config.json, and return its fingerprints as loaded."""

    def make(name="saved", generation=None, **changes):
        folder = tmp_path / name
        if not folder.is_dir():
            random_model(LLAMA_SHAPE).save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        for file, new in (("config.json", changes), ("generation_config.json", generation or {})):
            path = folder / file
            path.write_text(json.dumps(json.loads(path.read_text()) | new))
        section = compose("model=tiny-llama").model
        section = section.model_copy(update={"source": "path", "path": str(folder), "tokenizer": None})
        loaded = load_model(section, torch.float32, torch.device("cpu"), PlainProgress())
        return loaded.fingerprint, loaded.model_fingerprint

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 64},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"eos_token_id": 3},
        {"generation": {"max_new_tokens": 7}},
    ],
)
def test_equal_weights_under_another_configuration_are_another_model(model_print, changes):
    weights, model = model_print()
    same_weights, other = model_print(**changes)
    assert (weights == same_weights, model == other) == (True, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"_name_or_path": "elsewhere"},
        {"transformers_version": "4.1.0"},
        {"torch_dtype": "bfloat16"},
        {"architectures": ["LlamaForCausalLM"]},
        {"initializer_range": 0.5},
        {"id2label": {"0": "good"}},
        {"attention_bias": False},  # what is left out is false
    ],
)
def test_what_changes_no_output_keeps_the_model(model_print, changes):
    assert model_print() == model_print(**changes)


def test_another_attention_implementation_is_another_model(compose):
    section = compose("model=tiny-llama").model
    first, second = (
        load_model(section, torch.float32, torch.device("cpu"), PlainProgress()) for _ in range(2)
    )
    second.model.set_attn_implementation("eager")
    assert first.model_fingerprint != second.model_fingerprint


def test_a_tokenizer_is_told_apart_by_what_it_makes_of_texts():
    plain = fingerprint_tokenizer(byte_tokenizer())
    assert fingerprint_tokenizer(byte_tokenizer()) == plain
    shorter, larger = byte_tokenizer(), byte_tokenizer()
    shorter.init_kwargs["model_max_length"] = 16
    larger.add_tokens(["<extra>"])
    assert len({plain, fingerprint_tokenizer(shorter), fingerprint_tokenizer(larger)}) == 3


PERPLEXITY = "evaluation.protocols=[wikitext2-64]"
NAME = "wikitext2-64"


def test_a_quantized_cell_has_divergence_and_agreement(ran):
    data = ran("quant=rtn", PERPLEXITY)
    assert 0 < data.record.metric(NAME, "kl_divergence").value < 1
    assert 0 < data.record.metric(NAME, "top1_agreement").value < 1
    shapes = {data.tokens[key].shape for key in (NAME, f"{NAME}.kl", f"{NAME}.agrees")}
    assert len(shapes) == 1
    assert data.tokens[f"{NAME}.agrees"].dtype == np.uint8


def test_the_baseline_has_perplexity_alone(ran):
    data = ran("quant=fp", PERPLEXITY)
    assert [m.name for m in data.record.metrics] == ["perplexity"]
    assert set(data.tokens) == {NAME}


def test_more_bits_diverge_less(ran):
    kl = [
        ran("quant=rtn", f"bits={bits}", PERPLEXITY).record.metric(NAME, "kl_divergence").value
        for bits in (2, 4, 8)
    ]
    assert kl[0] > 3 * kl[1] > 9 * kl[2] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_baselines_perplexity_is_the_same_with_and_without_a_reference(run, dtype):
    cells = [run("quant=fp", PERPLEXITY, f"dtype={dtype}", f"evaluation.kl={kl}") for kl in (True, False)]
    assert np.array_equal(cells[0].tokens[NAME], cells[1].tokens[NAME])
    assert cells[0].record.metrics == cells[1].record.metrics


@pytest.mark.parametrize("first", ["fp", "rtn"])
def test_the_reference_is_taken_once_for_a_sweep_whoever_comes_first(run, first):
    second = {"fp": "rtn", "rtn": "fp"}[first]
    assert not run(f"quant={first}", PERPLEXITY, "dtype=bfloat16").record.stages["reference"].cached
    assert run(f"quant={second}", PERPLEXITY, "dtype=bfloat16").record.stages["reference"].cached


def test_nothing_is_referred_to_where_divergence_is_not_wanted(ran):
    data = ran("quant=rtn", PERPLEXITY, "evaluation.kl=false")
    assert "reference" not in data.record.stages
    assert [m.name for m in data.record.metrics] == ["perplexity"]


def test_the_reference_leaves_the_loaded_weights_as_they_were(cell, tmp_path):
    experiment = cell("quant=rtn", PERPLEXITY, "dtype=bfloat16")
    own = CellRun(experiment, StageCache(tmp_path / "cache"), PlainProgress(), ModelHolder())
    own.stages = stages_of(experiment, streamed=False)
    loaded = own.model.pristine()
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    own.get(f"reference {NAME}")
    after = loaded.model.state_dict()
    assert all(torch.equal(before[k], after[k]) and after[k].dtype == torch.float32 for k in before)


def test_throughput_and_memory_are_recorded_per_protocol_and_task(ran):
    for quant in ("fp", "rtn"):
        facts = ran(f"quant={quant}", PERPLEXITY).record.extra["evaluation"][NAME]
        assert facts["tokens_per_second"] > 0 and facts["seconds"] > 0
        assert facts["peak_memory_bytes"] > 2**20
