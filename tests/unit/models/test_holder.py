"""One model for many cells: loaded once, and after every change the same to the bit."""

import pytest
import torch

from faqbench.models import ModelHolder, load_model
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


def test_a_checkpoint_of_other_names_is_loaded_again(folder_section, ask, monkeypatch):
    from faqbench.models import holder

    section = folder_section()
    loaded = ask(section)
    before = state(loaded.model)
    spoil(ask, loaded)
    monkeypatch.setattr(holder._Tensors, "shape", lambda self, name: None)
    assert_same(state(ask(section).model), before)
    assert ask.holder.n_loads == 2


def test_a_fingerprint_that_is_known_is_not_taken_again(section):
    loaded = load_model(section("tiny-llama"), torch.float32, CPU, PlainProgress(), "known")
    assert loaded.fingerprint == "known"
