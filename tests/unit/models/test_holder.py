"""One model for many cells: loaded once, and after every change the same to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faqbench.config import UserError
from faqbench.models import ModelHolder, holder, load_model, tensors
from faqbench.models.loading import fingerprint_weights
from faqbench.models.random_model import byte_tokenizer, random_model
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


def spoil(ask, loaded):
    """Do what a cell does: round the weights in place and cast the model."""
    ask.holder.changed()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.copy_(parameter.mul(8).round().div(8))
    loaded.model.to(torch.bfloat16)


def state(model):
    buffers = {f"buffer {name}": b.clone() for name, b in model.named_buffers()}
    return {name: p.clone() for name, p in model.state_dict().items()} | buffers


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def test_a_model_that_nobody_changed_is_given_again_as_it_is(section, ask):
    first = ask(section("tiny-llama"))
    assert ask(section("tiny-llama")) is first and ask.holder.n_loads == 1


@pytest.mark.parametrize("name", TINY)
def test_a_random_model_is_restored_to_the_bit(section, ask, name):
    loaded = ask(section(name))
    before = state(loaded.model)
    spoil(ask, loaded)
    assert_same(state(ask(section(name)).model), before)
    assert ask.holder.n_loads == 1


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "100KB"}])
@pytest.mark.parametrize("name", TINY)
def test_a_model_of_a_folder_is_restored_to_the_bit(folder_section, ask, name, save):
    section = folder_section(name, **save)
    loaded = ask(section)
    before = state(loaded.model)
    spoil(ask, loaded)
    assert_same(state(ask(section).model), before)
    assert ask.holder.n_loads == 1
    assert fingerprint_weights(loaded.model) == loaded.fingerprint


def test_tied_weights_stay_tied(section, ask):
    loaded = ask(section("tiny-llama"))
    spoil(ask, loaded)
    model = ask(section("tiny-llama")).model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.data_ptr() == embedding.weight.data_ptr()


def test_a_restored_model_answers_as_before(section, ask):
    tokens = torch.arange(32).view(1, -1)
    loaded = ask(section("tiny-llama"))
    with torch.inference_mode():
        before = loaded.model(input_ids=tokens).logits
        spoil(ask, loaded)
        again = ask(section("tiny-llama")).model(input_ids=tokens).logits
    assert torch.equal(before, again)


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


def test_what_loading_does_beyond_copying_is_done_again_for_every_cell(folder_section, ask):
    # Files of the decoder alone: transformers puts "model." in front of every name.
    section = folder_section()
    rename(section.path, lambda name: name.removeprefix("model."))
    loaded = ask(section)
    before = state(loaded.model)
    for n_loads in (2, 3):
        spoil(ask, loaded)
        loaded = ask(section)
        assert_same(state(loaded.model), before)
        assert ask.holder.n_loads == n_loads


def test_a_model_whose_tensors_are_not_what_was_loaded_is_never_restored(
    folder_section, ask, monkeypatch
):
    section = folder_section()
    loaded = ask(section)
    before = state(loaded.model)
    read = tensors._Stored.read
    monkeypatch.setattr(tensors._Stored, "read", lambda self, name: read(self, name) * 2)
    for n_loads in (2, 3):
        spoil(ask, loaded)
        loaded = ask(section)
        assert_same(state(loaded.model), before)
        assert ask.holder.n_loads == n_loads


def test_the_first_restoring_alone_pays_for_a_fingerprint(folder_section, ask, monkeypatch):
    taken = []
    real = holder.fingerprint_weights
    monkeypatch.setattr(holder, "fingerprint_weights", lambda m: taken.append(m) or real(m))
    section = folder_section()
    for _ in range(4):
        spoil(ask, ask(section))
    assert len(taken) == 1 and ask.holder.n_loads == 1


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
