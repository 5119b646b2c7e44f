"""Models from random weights, folders and nowhere; one opened for many cells; tokenizers."""

import json
import os
import shutil
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from faqbench.cli import main
from faqbench.cli.composing import conf_dir
from faqbench.config import UserError
from faqbench.models import ModelHolder, encode, holder, load_model, load_tokenizer, tokenizers
from faqbench.models.loading import fingerprint_weights
from faqbench.models.sources import byte_tokenizer, random_model
from faqbench.models.tensors import Held
from faqbench.stages import PlainProgress

CPU = torch.device("cpu")
TINY = sorted(path.stem for path in conf_dir().glob("model/tiny-*.yaml"))


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_model_loads_ready_to_run(load, name):
    loaded = load(name)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer("abc", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TINY)
def test_the_same_yaml_gives_the_same_weights(load, name):
    assert load(name).fingerprint == load(name).fingerprint


def test_another_seed_gives_other_weights(load):
    assert load().fingerprint != load(seed=1).fingerprint


def test_drawing_a_model_leaves_torchs_random_state_alone(section):
    state = torch.get_rng_state()
    random_model(section("tiny-llama").random)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fingerprint_changes_with_a_single_weight_and_with_the_dtype(load):
    loaded = load()
    before = fingerprint_weights(loaded.view)
    loaded.model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert fingerprint_weights(loaded.view) != before == loaded.fingerprint
    assert load(dtype=torch.bfloat16).fingerprint != before


def test_half_precision_is_the_dtype_of_every_weight(load):
    assert {p.dtype for p in load(dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}


def test_the_tokenizer_of_bytes_gives_one_token_per_byte_and_takes_them_back(section):
    tokenizer = load_tokenizer(section("tiny-llama"), PlainProgress())
    text = "Bytes: é 漢 \n\t ok"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def from_folder(section, folder):
    changes = {"source": "path", "path": str(folder), "random": None}
    return load_model(section("tiny-llama", **changes), torch.float32, CPU, PlainProgress())


def test_a_saved_folder_loads_as_the_same_model(section, load, tmp_path):
    load().model.save_pretrained(tmp_path)
    assert from_folder(section, tmp_path).fingerprint == load().fingerprint


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
def test_a_model_cast_to_bfloat16_is_the_one_that_transformers_loads_so(section, load, tmp_path, name):
    saved = load(name)
    saved.model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ours = saved.view.view(dtypes=(torch.float32, torch.bfloat16)).fill().module
    tokens = torch.arange(200)[None]
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_a_folder_without_a_config_is_refused(section, tmp_path):
    with pytest.raises(UserError, match=r"model\.path=.* is not a model folder: .*config\.json"):
        from_folder(section, tmp_path)


def test_a_folder_without_weights_is_refused_in_one_sentence(section, load, tmp_path):
    load().model.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^model=tiny-llama could not be loaded: [^\n]*$"):
        from_folder(section, tmp_path)


def test_a_folder_with_an_unreadable_config_is_refused_in_one_sentence(section, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"^model=tiny-llama could not be loaded: [^\n]*$"):
        from_folder(section, tmp_path)


def test_damaged_weights_are_refused_in_one_sentence(section, load, tmp_path):
    load().model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match=r"^model=tiny-llama could not be loaded: [^\n]*$"):
        from_folder(section, tmp_path)


def test_a_tensor_that_two_shards_hold_is_refused_in_one_sentence(section, load, tmp_path):
    load().model.save_pretrained(tmp_path)
    whole = tmp_path / "model.safetensors"
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copyfile(whole, tmp_path / name)
    whole.unlink()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"both a\.safetensors and b\.safetensors hold [^\n]*$"):
        from_folder(section, tmp_path)


def test_an_unknown_random_model_type_is_refused(section):
    with pytest.raises(UserError, match=r"model\.random\.model_type=lama is not known"):
        random_model({**section("tiny-llama").random, "model_type": "lama"})


def test_lists_in_the_settings_reach_the_model(compose):
    kinds = "sliding_attention,full_attention,sliding_attention,full_attention"
    section = compose("model=tiny-gemma3", f"++model.random.layer_types=[{kinds}]").model
    assert random_model(section.random).config.layer_types == kinds.split(",")


def test_a_hub_model_without_a_hub_is_refused_with_what_to_do(section):
    with pytest.raises(UserError, match=r"Qwen/Qwen3-8B.*model\.source=path model\.path=FOLDER"):
        load_model(section("qwen3-8b"), torch.float32, CPU, PlainProgress())


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.random.num_hidden_layers=1000000", "is more than the 10000 blocks that are built"),
        ("model.random.hidden_size=1000000000", "B in float32, and this machine has"),
        ("model.random.vocab_size=1000000000000", "B in float32, and this machine has"),
    ],
)
def test_an_absurd_size_is_refused_before_the_model_is_built(
    setting, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    assert main(["model=tiny-llama", "quant=rtn", "tracking=none", setting]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("faqbench: ")]
    assert line.startswith("faqbench: model=tiny-llama could not be loaded: ") and sentence in line


def test_a_pipe_in_a_models_folder_is_refused_and_not_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model" / "tokenizer.json")
    cell = ["model=tiny-llama", "model.source=path", f"model.path={tmp_path}/model"]
    assert main([*cell, "quant=rtn", "tracking=none"]) == 2
    assert "tokenizer.json is neither a file nor a folder" in capsys.readouterr().err


class Silent:
    """A tokenizer that answers when it is told to, which may be never."""

    name_or_path = "someone/silent"

    def __init__(self) -> None:
        self.told = Event()

    def __call__(self, text, *, add_special_tokens, verbose):
        self.told.wait()
        return {"input_ids": []}


def test_a_text_is_encoded_without_special_tokens():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(encode(tokenizer, "ab")) == "ab"


def test_a_tokenizer_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(tokenizers, "_SECONDS", 0.01)
    silent = Silent()
    with pytest.raises(UserError, match=r"The tokenizer someone/silent did not answer within 0 s"):
        encode(silent, "a")
    silent.told.set()


def test_what_a_tokenizer_raises_is_raised():
    def broken(text, *, add_special_tokens, verbose):
        raise ValueError("no such byte")

    with pytest.raises(ValueError, match="no such byte"):
        encode(broken, "a")


HELD = ["tiny-llama", "tiny-gemma3", "tiny-phi3"]


@pytest.fixture
def folder_section(section, tmp_path):
    """A model of a folder, as a user's own."""

    def make(name="tiny-llama", **save):
        original = section(name)
        model = random_model(original.random)
        model.save_pretrained(tmp_path / name, **save)
        byte_tokenizer().save_pretrained(tmp_path / name)
        changed = {"source": "path", "path": str(tmp_path / name), "random": None}
        return original.model_copy(update=changed | {"tokenizer": None})

    return make


@pytest.fixture
def ask():
    holder = ModelHolder()

    def pristine(section, dtype=torch.float32):
        return holder.pristine(section, dtype, CPU, PlainProgress())

    pristine.holder = holder
    return pristine


def rename(folder, new_name):
    """Write a folder's one file of weights again, its tensors under other names."""
    path = Path(folder) / "model.safetensors"
    save_file({new_name(k): v for k, v in load_file(path).items()}, path, {"format": "pt"})


def look_at_another_view(ask):
    """Do what a cell does: look at the model with rounded weights, in another dtype."""

    def rounded(pristine):
        state = {name: w.mul(8).round().div(8) for name, w in pristine.named_weights()}
        return pristine.view(tensors=Held(state), dtypes=(torch.bfloat16,))

    view = ask.holder.view("rounded", rounded)
    view.fill().module(torch.arange(4)[None])


def state(model):
    buffers = {f"buffer {name}": b.clone() for name, b in model.named_buffers()}
    return {name: p.clone() for name, p in model.state_dict().items()} | buffers


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def test_a_model_that_was_asked_for_before_is_given_again(section, ask):
    first = ask(section("tiny-llama"))
    assert ask(section("tiny-llama")) is first and ask.holder.n_loads == 1


@pytest.mark.parametrize("name", HELD)
def test_a_random_model_is_the_same_after_another_view(section, ask, name):
    loaded = ask(section(name))
    before = state(loaded.model)
    look_at_another_view(ask)
    assert_same(state(ask(section(name)).model), before)
    assert ask.holder.n_loads == 1


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "100KB"}])
@pytest.mark.parametrize("name", HELD)
def test_a_model_of_a_folder_is_the_same_after_another_view(folder_section, ask, name, save):
    section = folder_section(name, **save)
    loaded = ask(section)
    before = state(loaded.model)
    look_at_another_view(ask)
    assert_same(state(ask(section).model), before)
    assert ask.holder.n_loads == 1


def test_only_the_view_that_was_asked_for_last_has_its_weights(section, ask):
    loaded = ask(section("tiny-llama"))
    look_at_another_view(ask)
    assert all(p.is_meta for p in loaded.view.module.parameters())


def test_tied_weights_stay_tied(section, ask):
    ask(section("tiny-llama"))
    look_at_another_view(ask)
    model = ask(section("tiny-llama")).model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.data_ptr() == embedding.weight.data_ptr()


def test_another_model_or_dtype_takes_the_place_of_the_first(section, ask):
    ask(section("tiny-llama"))
    ask(section("tiny-qwen3"))
    half = ask(section("tiny-qwen3"), torch.bfloat16)
    assert ask.holder.n_loads == 3
    assert next(half.model.parameters()).dtype == torch.bfloat16


def test_weights_that_changed_on_disk_are_loaded_again(folder_section, ask):
    section = folder_section()
    first = ask(section)
    other = section.model_copy()
    random_model(dict(seed=7, **_settings(first))).save_pretrained(section.path)
    assert ask(other).fingerprint != first.fingerprint and ask.holder.n_loads == 2


def _settings(loaded):
    config = loaded.model.config
    names = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
             "tie_word_embeddings")  # fmt: skip
    return {name: getattr(config, name) for name in names}


def test_files_that_transformers_converts_serve_all_views_too(folder_section, ask):
    # Files of the decoder alone: transformers puts "model." in front of every name.
    section = folder_section()
    rename(section.path, lambda name: name.removeprefix("model."))
    loaded = ask(section)
    before = state(loaded.model)
    look_at_another_view(ask)
    assert_same(state(ask(section).model), before)
    assert ask.holder.n_loads == 1


def test_files_that_change_while_they_are_read_are_refused(folder_section, ask, monkeypatch):
    section = folder_section()

    def load_meanwhile(*arguments):
        loaded = load_model(*arguments)
        rename(section.path, lambda name: name)  # another time stamp
        return loaded

    monkeypatch.setattr(holder, "load_model", load_meanwhile)
    with pytest.raises(UserError, match=r"^The files of model=tiny-llama changed while they were"):
        ask(section)


def test_a_fingerprint_that_is_known_is_not_taken_again(section):
    loaded = load_model(section("tiny-llama"), torch.float32, CPU, PlainProgress(), "known")
    assert loaded.fingerprint == "known"
