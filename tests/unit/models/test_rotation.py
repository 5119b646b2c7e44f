"""Hadamard matrices, and rotated models: views with the same outputs, for every family and every place."""

import pytest
import torch

from faqbench.cli.composing import conf_dir
from faqbench.config import UserError
from faqbench.models import Model, RotatedTensors, load_model
from faqbench.models.hadamard import block_width, draw_rotation, hadamard
from faqbench.models.model import skeleton_of
from faqbench.models.rotation import untied_weights
from faqbench.stages import PlainProgress

FAMILIES = sorted(p.stem.removeprefix("tiny-") for p in conf_dir().glob("model/tiny-*.yaml"))
CPU = torch.device("cpu")


class Uneven:
    """A random model's tensors with gains that differ and biases that are not zero."""

    def __init__(self, base):
        self.base = base
        self.shape = base.shape

    def read(self, name, rows=slice(None)):
        tensor = self.base.read(name)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        if "norm" in name:
            tensor = tensor * noise.exp()
        else:
            tensor = tensor + noise if name.endswith("bias") else tensor * 3
        return tensor[rows]


@pytest.fixture(scope="module")
def load(compose):
    def make(family, **random):
        section = compose(f"model=tiny-{family}").model
        section = section.model_copy(update={"random": {**(section.random or {}), **random}})
        view = load_model(section, torch.float32, CPU, PlainProgress()).view
        return view.view(tensors=Uneven(view.tensors))

    return make


@pytest.fixture(scope="module")
def rotation(compose):
    def make(kind, places, seed=0):
        chosen = f"quant.rotation.places=[{places}]", f"quant.rotation.seed={seed}"
        return compose("model=tiny-llama", "quant=hadamard-rtn", f"quant.rotate={kind}", *chosen).quant

    return make


def rotated(view, quant):
    tensors = RotatedTensors(view.tensors, view.architecture, quant)
    return view.view(tensors=tensors, prepare=tensors.prepare)


@torch.no_grad()
def logits(view):
    tokens = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(0))
    return view.fill().module(tokens).logits


@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rotated_model_gives_the_same_logits(load, rotation, family, kind):
    view = load(family)
    places = "R2,R4" if family == "gemma3" else "R1,R2,R4"
    other = rotated(view, rotation(kind, places))
    before = logits(view)
    assert before.std() > 0.3
    assert (logits(other) - before).abs().max() < 1e-3
    assert not torch.equal(other.weight("model.layers.1.mlp.down_proj.weight"),
                           view.weight("model.layers.1.mlp.down_proj.weight"))  # fmt: skip


def test_a_streamed_model_is_rotated_with_the_same_bits(load, rotation):
    view, quant = load("llama"), rotation("hadamard", "R1,R2,R4")
    skeleton = skeleton_of(view.module)
    streamed = Model(skeleton, view.architecture, view.tensors, view.dtypes, CPU, is_resident=False)
    assert torch.equal(logits(rotated(streamed, quant)), logits(rotated(view, quant)))


@pytest.mark.parametrize("place", ["R1", "R2", "R4"])
def test_each_place_alone_changes_weights_and_no_logits(load, rotation, place):
    view = load("qwen2")
    other = rotated(view, rotation("hadamard", place))
    changed = {name for name, w in view.named_weights() if not torch.equal(w, other.weight(name))}
    block = "model.layers.2."
    linears = {n.removeprefix(block) for n in changed if n.startswith(block) and "proj.weight" in n}
    qkv = {f"self_attn.{n}_proj.weight" for n in "qkv"}
    assert linears == {
        "R1": {*qkv, "self_attn.o_proj.weight", *(f"mlp.{n}_proj.weight" for n in ("gate", "up", "down"))},
        "R2": {"self_attn.v_proj.weight", "self_attn.o_proj.weight"},
        "R4": {"mlp.down_proj.weight"},
    }[place]  # fmt: skip
    assert (f"{block}self_attn.v_proj.bias" in changed) == (place == "R2")
    assert (logits(other) - logits(view)).abs().max() < 1e-3


def test_a_tied_head_becomes_one_of_its_own_and_is_counted(load, rotation):
    view, quant = load("llama", tie_word_embeddings=True), rotation("hadamard", "R1")
    other = rotated(view, quant)
    module = other.fill().module
    assert module.lm_head.weight is not module.model.embed_tokens.weight
    assert not module.config.tie_word_embeddings and view.module.config.tie_word_embeddings
    assert other.n_parameters - view.n_parameters == 257 * 64
    assert untied_weights(view.architecture, quant) == 257 * 64
    assert untied_weights(view.architecture, rotation("hadamard", "R2")) == 0


def test_hidden_states_of_the_model_as_loaded_suit_the_rotated_head(load, rotation):
    view = load("llama")
    tensors = RotatedTensors(view.tensors, view.architecture, rotation("hadamard", "R1"))
    other = view.view(tensors=tensors, prepare=tensors.prepare)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        hidden = view.fill().module.model(tokens).last_hidden_state
        expected = other.fill().module.model(tokens).last_hidden_state
    assert torch.allclose(tensors.rotate_output(hidden), expected, atol=1e-3)


def test_seeds_give_other_weights_and_the_same_seed_the_same(load, rotation):
    view, name = load("llama"), "model.layers.0.self_attn.q_proj.weight"
    first, again, other = (
        rotated(view, rotation("hadamard", "R1", seed)).weight(name) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_family_with_norms_before_the_residual_stream_is_refused_r1(load, rotation):
    view = load("gemma3")
    with pytest.raises(UserError, match=r"R1.*gemma3.*norm.*places=\[R2,R4\]"):
        RotatedTensors(view.tensors, view.architecture, rotation("hadamard", "R1,R2"))


def test_an_odd_size_has_no_hadamard_matrix_but_a_random_rotation(load, rotation):
    view = load("llama", intermediate_size=33)
    with pytest.raises(UserError, match=r"size 33, which is odd and which R4 needs"):
        RotatedTensors(view.tensors, view.architecture, rotation("hadamard", "R4"))
    other = rotated(view, rotation("random", "R4"))
    assert (logits(other) - logits(view)).abs().max() < 1e-3


# The prime constructions of METHODS' table, and sizes of models.
ORDERS = (1, 2, 4, 12, 20, 28, 36, 44, 60, 68, 76, 108, 140, 148)
SIZES = (64, 128, 576, 640, 896, 960, 1536)


@pytest.mark.parametrize("order", [*ORDERS, *SIZES])
def test_a_hadamard_matrix_has_rows_of_ones_that_are_orthogonal(order):
    matrix = hadamard(order)
    assert set(matrix.unique().tolist()) <= {1.0, -1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("size", [2560, 3072, 3584, 4864, 5120, 8960, 9728, 12288, 14336, 18944, 25600])
def test_the_sizes_of_published_models_are_mixed_as_a_whole(size):
    assert block_width(size) == size


def test_a_size_without_an_order_gets_blocks_of_a_power_of_two():
    assert {n: block_width(n) for n in (11008, 18, 50, 9, 172)} == {
        11008: 256, 18: 2, 50: 2, 9: 1, 172: 4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize("size", [64, 90, 36, 1536])
def test_a_rotation_is_orthogonal_and_multiplies_as_its_matrix_does(kind, size):
    rotation = draw_rotation(kind, size, seed=1, place="R1")
    matrix = rotation.matrix()
    x = torch.randn(3, 5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotation.times(x), x @ matrix)
    assert torch.allclose(rotation.times(x).norm(dim=-1), x.norm(dim=-1))


def test_repeating_a_rotation_rotates_every_head_alike():
    rotation = draw_rotation("hadamard", 8, seed=0, place="R2 3")
    x = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heads = [rotation.times(head) for head in x.split(8, dim=-1)]
    assert torch.equal(rotation.repeated(3).times(x), torch.cat(heads, dim=-1))


def test_draws_differ_by_seed_and_place_and_by_nothing_else():
    def draw(seed, place):
        return draw_rotation("random", 6, seed, place).matrix()

    assert torch.equal(draw(0, "R1"), draw(0, "R1"))
    assert not torch.equal(draw(0, "R1"), draw(1, "R1"))
    assert not torch.equal(draw(0, "R2 0"), draw(0, "R2 1"))


def test_random_rotations_have_no_preferred_direction():
    draws = torch.stack([draw_rotation("random", 3, s, "R1").matrix() for s in range(300)])
    assert draws.mean(dim=0).abs().max() < 0.15


def test_a_row_with_an_outlier_is_rounded_better_in_the_rotated_basis():
    row = torch.randn(1, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row[0, 7] = 40

    def error(x):
        step = x.abs().amax() / 7
        return float((x.div(step).round() * step - x).norm())

    assert error(draw_rotation("hadamard", 576, 0, "R1").times(row)) < error(row) / 3
