"""SignRound of Intel's auto-round, on fixed tensors: what it rounds to, gradients, a step.

What differs: auto-round stores scales in float16 unless it is told otherwise, and takes its rates from a
scheduler, where ours shrinks them to nothing itself. Checked with auto-round 0.16.1.
"""

from types import SimpleNamespace

import pytest
import torch

from faqbench.quantization import Grid
from faqbench.quantization.refine import SharedInput, _signs, signround, stand_ins, start_of

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("auto_round", reason="an optional extra: pip install --no-deps auto-round==0.16.1")
ROWS, COLUMNS, WIDTH = 24, 128, 32


def state_after_a_while(role):
    """Return a state that is not the start's, with gradients."""
    generator = torch.Generator().manual_seed(1)
    state = start_of([role], signround())
    for key, value in state.items():
        drawn = torch.rand(value.shape, generator=generator)
        value.copy_(drawn - 0.5 if key.startswith("offset ") else 0.7 + 0.3 * drawn)
        value.requires_grad_()
    return state


@pytest.fixture
def role():
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    grid = Grid(bits=3, group_size=WIDTH, symmetric=False)
    return SharedInput(name="qkv", weights={"q": weight}, grids={"q": grid}, start=None)


def test_a_state_rounds_to_the_peers_weights_and_gradients(role):
    from auto_round.data_type.int import quant_tensor_asym

    toward = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(2))
    state = state_after_a_while(role)
    ours = stand_ins(state, [role], signround())["q"].weight
    (ours * toward).sum().backward()
    found = {key: value.grad.clone() for key, value in state.items()}

    low, high, offset = (state[f"{kind} q"].detach().clone() for kind in ("low", "high", "offset"))
    leaves = [leaf.requires_grad_() for leaf in (low, high, offset)]
    theirs, _, _ = quant_tensor_asym(
        role.weights["q"],
        bits=3,
        group_size=WIDTH,
        v=offset.view(-1, WIDTH),
        min_scale=low.flatten(),
        max_scale=high.flatten(),
        scale_dtype=torch.float32,
    )
    (theirs * toward).sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for kind, leaf in zip(("low", "high", "offset"), leaves, strict=True):
        torch.testing.assert_close(found[f"{kind} q"], leaf.grad, rtol=1e-4, atol=1e-4)


def test_a_step_is_the_peers(role):
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD

    state = state_after_a_while(role)
    generator = torch.Generator().manual_seed(3)
    theirs = {key: value.detach().clone().requires_grad_() for key, value in state.items()}
    for key, value in state.items():
        value.grad = torch.randn(value.shape, generator=generator)
        theirs[key].grad = value.grad.clone()
    SignSGD(list(theirs.values()), lr=0.005).step()
    _signs(state, SimpleNamespace(steps=200, offset_rate=None), 1.0)(1)
    for key, value in theirs.items():
        allowed = (-0.5, 0.5) if key.startswith("offset ") else (0.0, 1.0)
        torch.testing.assert_close(state[key].detach(), value.detach().clamp(*allowed), rtol=0, atol=1e-7)
