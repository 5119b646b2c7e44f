"""One model for many cells: opened once, and one view of it in memory at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faqbench.config import UserError
from faqbench.models import ModelHolder, holder, load_model
from faqbench.models.sources import byte_tokenizer, random_model
from faqbench.models.tensors import Held
from faqbench.stages import PlainProgress

CPU = torch.device("cpu")
TINY = ["tiny-llama", "tiny-gemma3", "tiny-phi3"]


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


@pytest.mark.parametrize("name", TINY)
def test_a_random_model_is_the_same_after_another_view(section, ask, name):
    loaded = ask(section(name))
    before = state(loaded.model)
    look_at_another_view(ask)
    assert_same(state(ask(section(name)).model), before)
    assert ask.holder.n_loads == 1


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "100KB"}])
@pytest.mark.parametrize("name", TINY)
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
