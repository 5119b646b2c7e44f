"""Folders of users' own: the right numbers of the right weights, or one sentence before all work."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from faqbench.cli import main
from faqbench.models.sources import byte_tokenizer, random_model
from faqbench.records import find_runs

SIZES = {
    "model_type": "llama", "seed": 0, "vocab_size": 257, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "initializer_range": 0.05,
}  # fmt: skip
QUANTIZED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "auto-round": {"quant_method": "auto-round", "bits": 4, "group_size": 32},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
}


@pytest.fixture
def checkpoint(workplace):
    """A folder with a tiny model, its config and its tensors changed."""

    def make(name="model", tensors=None, config=None, tokenizer=None, **sizes):
        folder = workplace.root / name
        shutil.rmtree(folder, ignore_errors=True)
        random_model({**SIZES, **sizes}).save_pretrained(folder)
        (tokenizer or byte_tokenizer()).save_pretrained(folder)
        if tensors is not None:
            path = folder / "model.safetensors"
            save_file(tensors(load_file(path)), path, {"format": "pt"})
        if config is not None:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return make


@pytest.fixture
def faqbench(workplace, capsys):
    """Run a cell or a sweep on folders; return the exit code and what was said."""

    def run(*arguments, folders=(), verb=()):
        paths = ",".join(str(folder) for folder in folders)
        model = ["model.source=path", f"model.path={paths}", "model.tokenizer=null"]
        sweep = ["-m"] if any("," in a and "[" not in a for a in (*arguments, paths)) else []
        code = main([*verb, *sweep, *workplace.cell, *model, "report.name=null", *arguments])
        return code, capsys.readouterr().err

    return run


def perplexities(runs):
    return {
        r.config["quant"]["name"]: (r.metric("wikitext2-64", "perplexity").value, r.fingerprints)
        for r in find_runs(runs)[0]
    }


def without(*names):
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


def refusal(faqbench, workplace, folder, *arguments, verb=()):
    """Return the sentence with which a run is refused before there is any record."""
    code, said = faqbench("quant=rtn", *arguments, folders=[folder], verb=verb)
    assert code == 2 and said.count("\n") == 1 and not find_runs(workplace.runs)[0]
    return said


@pytest.mark.parametrize("beside", ["an older set of shards", "a backup"])
def test_files_beside_a_checkpoint_change_no_number_in_any_cell(
    beside, checkpoint, faqbench, workplace, monkeypatch
):
    sweep = ["quant=fp,rtn", "bits=8"]
    assert faqbench(*sweep, "paths.runs=alone", folders=[checkpoint()])[0] == 0
    folder = checkpoint()
    other = random_model({**SIZES, "seed": 7})
    if beside == "a backup":
        other.save_pretrained(workplace.root / "other")
        backup = folder / "model_before_sft.safetensors"
        shutil.move(workplace.root / "other" / "model.safetensors", backup)
    else:
        shutil.rmtree(folder)
        other.save_pretrained(folder, max_shard_size="60KB")
        old = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
        shutil.rmtree(folder)
        random_model(SIZES).save_pretrained(folder, max_shard_size="90KB")
        byte_tokenizer().save_pretrained(folder)
        for name in old.keys() - {p.name for p in folder.glob("*.safetensors")}:
            (folder / name).write_bytes(old[name])
    monkeypatch.setenv("FAQBENCH_CACHE", str(workplace.root / "another-cache"))
    assert faqbench(*sweep, folders=[folder])[0] == 0
    assert perplexities(workplace.runs) == perplexities(workplace.root / "alone")


def test_weights_saved_over_a_folder_are_found_to_be_others(checkpoint, faqbench, workplace):
    assert faqbench("quant=rtn", folders=[checkpoint()])[0] == 0
    before = perplexities(workplace.runs)["rtn"]
    folder = checkpoint(seed=7)
    assert faqbench("quant=rtn", "rerun=true", folders=[folder])[0] == 0
    after = perplexities(workplace.runs)["rtn"]
    assert after[0] != before[0] and after[1]["weights"] != before[1]["weights"]


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_checkpoint_that_says_it_is_quantized_is_refused(method, checkpoint, faqbench, workplace):
    folder = checkpoint(config={"quantization_config": QUANTIZED[method]})
    said = refusal(faqbench, workplace, folder)
    assert f"quantized already (quantization_config: {method}); faqbench quantizes models" in said


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("qweight", torch.int32), ("weight_packed", torch.uint8), ("weight", torch.float8_e4m3fn)],
)
def test_tensors_of_codes_are_refused_by_their_dtype(suffix, dtype, checkpoint, faqbench, workplace):
    def quantize(tensors):
        weight = tensors.pop("model.layers.1.mlp.up_proj.weight")
        return tensors | {f"model.layers.1.mlp.up_proj.{suffix}": weight.to(dtype)}

    said = refusal(faqbench, workplace, checkpoint(tensors=quantize))
    assert f"holds model.layers.1.mlp.up_proj.{suffix} as " in said


def test_a_sweep_and_its_plan_are_refused_as_a_run_is(checkpoint, faqbench, workplace):
    folder = checkpoint(config={"intermediate_size": 96})
    said = refusal(faqbench, workplace, folder)
    assert faqbench("quant=fp,rtn,awq", folders=[folder]) == (2, said)
    assert faqbench("quant=fp,rtn,awq", folders=[folder], verb=["plan"]) == (2, said)
    assert not find_runs(workplace.runs)[0]


def test_missing_tensors_are_refused_by_name(checkpoint, faqbench, workplace):
    folder = checkpoint(tensors=without("lm_head.weight", "model.layers.1.mlp.down_proj.weight"))
    said = refusal(faqbench, workplace, folder)
    assert "lack 2 of 16 tensors (lm_head.weight, model.layers.1.mlp.down_proj.weight)" in said
    assert "tie_word_embeddings=true" in said


def test_a_prefix_before_every_name_is_refused_with_the_names_that_are_there(
    checkpoint, faqbench, workplace
):
    folder = checkpoint(tensors=lambda tensors: {f"module.{k}": v for k, v in tensors.items()})
    said = refusal(faqbench, workplace, folder)
    assert "lack 16 of 16 tensors" in said and "module.lm_head.weight" in said


def test_shapes_that_contradict_the_config_are_refused_by_name(checkpoint, faqbench, workplace):
    said = refusal(faqbench, workplace, checkpoint(config={"intermediate_size": 96}))
    assert "holds model.layers.0.mlp.gate_proj.weight as [128, 64], but config.json makes" in said


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (without("model.norm.weight"), "lack 1 of 21 tensors (model.norm.weight)"),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(60)},
            "hold model.norm.weight as [60], but config.json makes it [64]",
        ),
    ],
)
def test_what_only_transformers_knows_to_be_missing_fails_the_cell_when_it_loads(
    tensors, sentence, checkpoint, faqbench, workplace
):
    assert faqbench("quant=fp", folders=[checkpoint(tensors=tensors)])[0] == 2
    (record,), _ = find_runs(workplace.runs)
    assert record.status == "failed" and sentence in record.error


def test_a_head_of_its_own_in_a_tied_model_is_refused(checkpoint, faqbench, workplace):
    said = refusal(faqbench, workplace, checkpoint(config={"tie_word_embeddings": True}))
    assert "tie_word_embeddings=true, but its files hold an output head that differs" in said


def test_a_tied_head_that_is_stored_twice_is_the_same_model(checkpoint, faqbench, workplace):
    def store_twice(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    folders = [
        checkpoint("once", tie_word_embeddings=True),
        checkpoint("twice", tie_word_embeddings=True, tensors=store_twice),
    ]
    assert faqbench("quant=rtn", folders=folders)[0] == 0
    one, other = find_runs(workplace.runs)[0]
    assert one.fingerprints == other.fingerprints and one.metrics == other.metrics


def test_tensors_that_the_model_does_not_have_are_a_warning_in_the_record(checkpoint, faqbench, workplace):
    folder = checkpoint(tensors=lambda tensors: tensors | {"value_head.weight": torch.ones(3)})
    for rerun in ("false", "true"):
        assert faqbench("quant=fp", f"rerun={rerun}", folders=[folder])[0] == 0
        (record,), _ = find_runs(workplace.runs)
        assert any("does not have" in w and "value_head.weight" in w for w in record.warnings)


@pytest.mark.parametrize("damage", ["{", "[]", '{"model_type": "llama"}', "\ud800"])
def test_a_damaged_config_is_told_before_the_first_cell_of_a_sweep(damage, checkpoint, faqbench, workplace):
    good, bad = checkpoint("good"), checkpoint("bad")
    (bad / "config.json").write_bytes(damage.encode("utf-8", "surrogatepass"))
    code, said = faqbench("quant=fp", folders=[good, bad])
    assert code == 2 and said.startswith("faqbench: model=tiny-llama could not be loaded: ")
    assert said.count("\n") == 1 and not find_runs(workplace.runs)[0]


def test_a_config_that_transformers_cannot_use_fails_its_cell_in_one_sentence(
    checkpoint, faqbench, workplace
):
    good, bad = checkpoint("good"), checkpoint("bad", config={"hidden_act": "siluu"})
    assert faqbench("quant=fp", folders=[good, bad])[0] == 1
    records = {r.config["model"]["path"]: r for r in find_runs(workplace.runs)[0]}
    assert records[str(good)].status == "finished"
    assert "could not be loaded: transformers stopped with KeyError" in records[str(bad)].error
    assert "\n" not in records[str(bad)].error


def test_all_mistakes_of_a_sweep_are_listed_before_its_first_cell(checkpoint, faqbench, workplace):
    code, said = faqbench(
        "quant=fp,rtn,awq",
        "group_size=32,48",
        "evaluation.protocols=[wikitext2-64,wikitext2-1024]",
        folders=[checkpoint()],
    )
    assert code == 2 and not find_runs(workplace.runs)[0]
    assert "group_size=48 does not divide in_features=64" in said
    assert "Windows of 1024 tokens do not fit the model's context of 512" in said


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"},
             "vision_config": {"hidden_size": 8}},
            "model_type 'gemma3' is a multimodal model (text and vision)",
        ),
        (
            {"model_type": "qwen3_moe", "num_experts": 128},
            "model_type 'qwen3_moe' is a mixture of experts (num_experts=128)",
        ),
        ({"model_type": "gpt2"}, "model_type 'gpt2' has no family"),
    ],
)  # fmt: skip
def test_what_is_no_dense_text_decoder_is_named_without_its_weights(config, sentence, faqbench, workplace):
    folder = workplace.root / "config-alone"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert sentence in refusal(faqbench, workplace, folder, verb=["plan"])


def test_a_shard_that_is_missing_or_cut_short_is_told_by_name(checkpoint, faqbench, workplace):
    folder = checkpoint()
    shutil.rmtree(folder)
    random_model(SIZES).save_pretrained(folder, max_shard_size="90KB")
    byte_tokenizer().save_pretrained(folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard.name} is damaged or cut short" in refusal(faqbench, workplace, folder)
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(faqbench, workplace, folder)


def test_an_adapter_beside_the_weights_is_refused(checkpoint, faqbench, workplace):
    folder = checkpoint()
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json)" in refusal(faqbench, workplace, folder)


def test_a_folder_without_a_tokenizer_is_refused_with_what_to_do(checkpoint, faqbench, workplace):
    folder = checkpoint()
    for path in folder.glob("token*"):
        path.unlink()
    assert "set model.tokenizer to a folder" in refusal(faqbench, workplace, folder)


@pytest.fixture
def with_added_tokens(checkpoint):
    """A model whose tokenizer has tokens that the embedding was never resized for."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(200)])
    return checkpoint(tokenizer=tokenizer)


@pytest.mark.parametrize("text", ["calibration.txt", "wikitext2.txt"])
def test_a_text_with_a_token_that_the_model_does_not_know_names_it(
    text, with_added_tokens, faqbench, workplace
):
    path = workplace.root / text
    path.write_text("\n\n".join(f"{part} <extra_13>" for part in path.read_text().split("\n\n")))
    assert faqbench("quant=awq", folders=[with_added_tokens])[0] == 2
    (record,), _ = find_runs(workplace.runs)
    whose = "The calibration set" if text == "calibration.txt" else "Protocol 'wikitext2-64'"
    assert record.error.startswith(f"{whose} has token 270 ('<extra_13>'), but the model's embedding")


@pytest.mark.parametrize("scenario", ["scenario=random-tokens", "scenario.noise_rate=0.9"])
def test_random_tokens_are_ids_that_the_model_knows(scenario, with_added_tokens, faqbench, workplace):
    assert faqbench("quant=awq", scenario, folders=[with_added_tokens])[0] == 0
    (record,), _ = find_runs(workplace.runs)
    assert record.status == "finished"
