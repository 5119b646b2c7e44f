"""Views: a streamed model computes what a resident one does, and its weights go when they were used."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from faqbench.config import UserError
from faqbench.models import Budget, Model, Room, architecture_of, decoding, load_model, open_stream, twin
from faqbench.models.blocks import Shelf
from faqbench.models.loading import fingerprint_weights
from faqbench.models.memory import is_streamed, moment_bytes, streamed_bytes, working_bytes
from faqbench.models.model import skeleton_of
from faqbench.models.sources import byte_tokenizer, random_model
from faqbench.models.tensors import Held
from faqbench.stages import PlainProgress

CPU = torch.device("cpu")
TINY = ["tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-phi3"]
TOKENS = torch.randint(0, 257, (3, 90), generator=torch.Generator().manual_seed(0))


def streamed(loaded, **changes):
    """The same model, streamed."""
    view = loaded.view
    make = {"tensors": view.tensors, "dtypes": view.dtypes, "device": CPU, **changes}
    return Model(skeleton_of(view.module), view.architecture, **make, is_resident=False)


@pytest.mark.parametrize("name", TINY)
def test_a_streamed_forward_gives_the_same_bits_and_leaves_nothing_behind(load, name):
    loaded = load(name)
    view = streamed(loaded)
    found = view.module(TOKENS, use_cache=False).logits
    assert torch.equal(found, loaded.model(TOKENS, use_cache=False).logits)
    assert all(p.is_meta for p in view.module.parameters())


@pytest.mark.parametrize("name", TINY)
def test_the_walk_over_many_inputs_gives_what_each_gives_by_itself(load, name):
    loaded = load(name)
    rows = TOKENS[:1, :40]
    mask = torch.full((1, 1, 40, 40), -1e9).triu(1)
    masks = dict.fromkeys(set(getattr(loaded.model.config, "layer_types", ["all"])), mask)
    own = {"input_ids": rows, "attention_mask": masks if len(masks) > 1 else mask}
    own["position_ids"] = torch.arange(40)[None] // 2
    inputs = [lambda: {"input_ids": TOKENS}, lambda: own]
    decoder = loaded.model.get_decoder()
    with decoding({streamed(loaded): inputs}) as (walked,):
        for make, hidden in zip(inputs, walked.outputs(), strict=True):
            assert torch.equal(hidden, decoder(**make(), use_cache=False).last_hidden_state)


@pytest.mark.parametrize(("hidden_bytes", "is_away"), [(None, False), (10**9, False), (1, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_that_do_not_fit_wait_on_disk_with_the_same_bits(
    load, hidden_bytes, is_away, dtype, monkeypatch
):
    loaded, shelves, make_shelf = load(), [], Shelf.__init__
    views = [streamed(loaded, dtypes=(dtype,), room=Room(hidden_bytes=hidden_bytes)) for _ in range(2)]
    monkeypatch.setattr(Shelf, "__init__", lambda shelf, *a: shelves.append(shelf) or make_shelf(shelf, *a))
    inputs = [lambda i=i: {"input_ids": TOKENS[i % 3][None, : 20 + i]} for i in range(4)]
    resident = loaded.view.view(dtypes=(dtype,)).fill().module.get_decoder()
    with decoding(dict.fromkeys(views, inputs)) as walked:
        for make, *both in zip(inputs, *(one.outputs() for one in walked), strict=True):
            wanted = resident(**make(), use_cache=False).last_hidden_state
            assert all(torch.equal(hidden, wanted) for hidden in both)
    assert [shelf.is_away for shelf in shelves] == [is_away] * 2


def test_streams_of_windows_that_do_not_fit_wait_on_disk_with_the_same_bits(load):
    loaded = load()
    small = streamed(loaded, room=Room(hidden_bytes=1))
    streams = [open_stream(view, TOKENS, 2) for view in (loaded.view, small)]
    for index in range(4):
        for stream, view in zip(streams, (loaded.view, small), strict=True):
            with view.block(index) as block:
                stream.advance(block)
        part = [stream.fork(slice(1, None)).hidden for stream in streams]
        assert torch.equal(streams[0].hidden, streams[1].hidden) and torch.equal(*part)
    assert [stream.shelf.is_away for stream in streams] == [False, True]


def test_a_failing_forward_leaves_no_weights_behind(load):
    view = streamed(load())
    with pytest.raises(IndexError):
        view.module(TOKENS + 1000)
    assert all(p.is_meta for p in view.module.parameters())


def test_a_block_is_there_while_anybody_uses_it(load):
    view = streamed(load())
    with view.block(1) as block, view.block(1):
        pass
    assert all(p.is_meta for p in block.parameters())
    with view.block(1) as block:
        view.module(TOKENS)
        assert not any(p.is_meta for p in block.parameters())


@pytest.mark.parametrize("name", TINY)
def test_the_fingerprint_is_the_same_without_the_weights_in_memory(load, name):
    assert fingerprint_weights(streamed(load(name))) == load(name).fingerprint


def test_a_weight_goes_through_every_dtype_on_its_way(load):
    view = load().view.view(dtypes=(torch.bfloat16, torch.float32))
    name, weight = next(view.named_weights())
    original = load().view.weight(name)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, original.bfloat16().float()) and not torch.equal(weight, original)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_opens_as_what_transformers_loads(section, tmp_path, name):
    random_model(section(name).random).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    changed = section(name, source="path", path=str(tmp_path), random=None, tokenizer=None)
    ours = load_model(changed, torch.float32, CPU, PlainProgress()).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for one, other in ((ours.state_dict(), theirs.state_dict()), named_buffers(ours, theirs)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.config._attn_implementation == theirs.config._attn_implementation


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "can no longer be read: "),
        (lambda path: path.write_bytes(b"x"), "changed while its model was in use; run again"),
    ],
)
def test_a_file_that_changes_under_a_streamed_model_is_one_sentence(section, tmp_path, spoil, said):
    random_model(section("tiny-llama").random).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    changed = section("tiny-llama", source="path", path=str(tmp_path), random=None, tokenizer=None)
    view = streamed(load_model(changed, torch.float32, CPU, PlainProgress()))
    view.module(TOKENS)
    spoil(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"model\.safetensors {said}"):
        view.module(TOKENS)
    assert all(p.is_meta for p in view.module.parameters())


def named_buffers(*models):
    return [dict(model.named_buffers()) for model in models]


def test_a_view_may_have_modules_of_its_own(load):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    def double_the_head(model, _):
        weight, model.lm_head = model.lm_head.weight, Doubled(1, 1, bias=False)
        model.lm_head.weight = weight

    loaded = load()
    wanted = 2 * loaded.model(TOKENS).logits
    view = loaded.view.view(prepare=double_the_head)
    assert torch.equal(view.fill().module(TOKENS).logits, wanted)
    assert type(loaded.model.lm_head) is torch.nn.Linear


def test_a_twins_weights_are_its_own_once_they_are_replaced(load):
    block = load().architecture.block_modules(load().model)[0]
    second = twin(block)
    assert second.mlp.up_proj.weight is block.mlp.up_proj.weight
    second.mlp.up_proj.weight = torch.nn.Parameter(torch.zeros_like(block.mlp.up_proj.weight))
    assert bool(block.mlp.up_proj.weight.any())


def budget(n_bytes):
    return Budget(device_bytes=None, host_bytes=n_bytes, is_cpu=True)


def test_the_budget_decides_whether_a_model_is_streamed(section):
    tiny = section("tiny-llama")
    architecture = architecture_of(random_model(tiny.random).config.to_dict())
    working = working_bytes(architecture, torch.float32)
    load = load_model(tiny, torch.float32, CPU, PlainProgress(), None, budget(10**9))
    assert load.view.is_resident
    load = load_model(tiny, torch.float32, CPU, PlainProgress(), None, budget(working))
    assert not load.view.is_resident


def test_a_budget_that_is_smaller_than_a_block_is_refused_with_both_numbers(section):
    with pytest.raises(UserError, match=r"^One block .* takes .* there are 0\.01 MB \(memory\.host_"):
        load_model(section("tiny-llama"), torch.float32, CPU, PlainProgress(), None, budget(10**4))


def test_second_moments_count_for_the_methods_that_round_by_them(compose, section):
    tiny = section("tiny-llama")
    architecture = architecture_of(random_model(tiny.random).config.to_dict())
    gptq = compose("model=tiny-llama", "quant=gptq").quant
    bare, kept = working_bytes(architecture, torch.float32), moment_bytes(architecture, gptq)
    assert kept == 4 * (3 * 64**2 + 2 * 128**2)
    budget = f"memory.host_gigabytes={(bare + kept - 1) / 1e9:.9f}"
    cells = {name: compose("model=tiny-llama", f"quant={name}", budget) for name in ("rtn", "gptq")}
    assert is_streamed(cells["rtn"])
    with pytest.raises(UserError, match=r"^One block of this model takes"):
        is_streamed(cells["gptq"])
    enough = f"memory.host_gigabytes={(bare + kept) / 1e9:.9f}"
    bytes_of = {
        name: streamed_bytes(compose("model=tiny-llama", f"quant={name}", enough))[0] for name in cells
    }
    assert bytes_of["gptq"] - bytes_of["rtn"] == kept


def test_tensors_of_another_model_are_not_taken(load):
    loaded = load()
    state = {name: w[:1] for name, w in loaded.view.named_weights()}
    with pytest.raises(AssertionError, match=r"is .* not"):
        loaded.view.view(tensors=Held(state)).fill()


@pytest.mark.parametrize("name", TINY)
def test_a_large_table_is_read_some_rows_at_a_time_with_the_same_bits(load, name, monkeypatch):
    class Counted(Held):
        def read(self, name, rows=slice(None)):
            read = super().read(name, rows)
            largest.append(len(read))
            return read

    loaded, largest = load(name), []
    monkeypatch.setattr("faqbench.models.model._ROWS", 100)
    view = streamed(loaded, tensors=Counted(dict(loaded.model.state_dict())))
    found = view.weight("model.embed_tokens.weight")
    assert torch.equal(found, loaded.view.weight("model.embed_tokens.weight"))
    assert max(largest) == 100
    assert fingerprint_weights(view) == loaded.fingerprint
