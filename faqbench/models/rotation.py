"""Rotated models: the same outputs from weights in another basis, where no channel stands out.

Legend: R an orthogonal matrix; h the residual stream; g the gain of a norm; W [out, in] a weight, b its
bias.

    R1  hidden x hidden       h becomes h R1: the embedding E R1; what reads h behind a norm (qkv, gate_up,
                              head) W diag(g) R1, and that norm's gain ones; o and down, which add to h,
                              R1' W and b R1
    R2  head_dim x head_dim   values v become v R2, in each block by a draw of its own: their rows R2' W
                              and b R2; o head by head W R2
    R3  head_dim x head_dim   queries and keys, behind their position embedding, become q R3 and k R3 online
    R4  mlp x mlp             the input of down becomes x R4 online, and down W R4

A norm divides by the length of h, which R1 keeps; its gain does not commute with R1 and goes into the
weights that follow. A head that is one tensor with the embedding becomes one of its own, since it alone
takes the last norm's gain. R1 does not pass through a norm between o or down and the residual stream
(`Architecture.writes_straight_to_residual`), so families that have one are refused it. All is folded in
float64, one tensor at a time as it is read: a rotated model is a view, no second copy.

Reference: QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406, for the names, and for R2 in the place of
a rotation across heads. Differs from both codes: the embedding's rows are not centred, which is exact for
LayerNorm alone; biases of values are rotated with their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.models.architecture import Architecture, Role
from faqbench.models.hadamard import Kind, Rotation, block_width, draw_rotation
from faqbench.models.model import Model
from faqbench.models.prepared import OnlineRotation, prepare
from faqbench.models.tensors import ALL, Tensors

ROTATION_VERSION = 1  # raise it when the same options would give other weights
_N_PROBED = 64  # tokens
_ROWS = 2**9  # of a table that are rotated together: in float64 they stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class _Change:
    """How one tensor is made of the base's.

    Attributes:
        of: name of the base's tensor.
        gain: name of the norm's gain that is multiplied into the columns.
        columns: rotation of the inputs.
        rows: rotations of outputs, each of some rows, one after the other.
        is_gain: whether it is a norm's gain, which becomes ones.
    """

    of: str
    gain: str | None = None
    columns: Rotation | None = None
    rows: tuple[tuple[slice, Rotation], ...] = ()
    is_gain: bool = False


class RotatedTensors:
    """The tensors of a rotated model, made of those of the model as loaded."""

    def __init__(self, base: Tensors, architecture: Architecture, quant: QuantSection) -> None:
        """Prepare the rotations that `quant.rotate` and `quant.rotation` ask for.

        Raises:
            UserError: when the family or one of its sizes does not allow a place.
        """
        check_rotation(architecture, quant)
        self._base = base
        self._architecture = architecture
        self._quant = quant

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""
        change = self._changes.get(name)
        return self._base.shape(name if change is None else change.of)

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """Return a tensor's rows: rotated in float64 and given in float32, or as the base has them."""
        change = self._changes.get(name)
        if change is None:
            return self._base.read(name, rows)
        if change.rows and rows != ALL:  # which mix with others
            return self.read(name)[rows]
        tensor = self._base.read(change.of, rows)
        if change.is_gain:
            return torch.ones_like(tensor)
        if change.gain is not None or change.columns is not None:
            parts = torch.split(tensor, _ROWS)
            tensor = torch.cat([self._columns(rows, change) for rows in parts])
        for cut, rotation in change.rows:
            tensor = tensor.to(torch.float64, copy=True)
            tensor[cut] = rotation.times(tensor[cut].movedim(0, -1)).movedim(-1, 0)
        return tensor.float()

    def prepare(self, module: Any, architecture: Architecture) -> None:
        """Give a view's own modules what folding cannot: an own head, and rotations online."""
        head, config = module.get_submodule(architecture.head), module.config.get_text_config()
        if untied_weights(architecture, self._quant):
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            config.tie_word_embeddings = module.config.tie_word_embeddings = False
        for index in range(architecture.n_blocks if "R4" in self._places else 0):
            for linear in architecture.role("down").linears:
                name = f"{architecture.blocks}.{index}.{linear}"
                prepare(module, name, OnlineRotation(self._of_mlp))

    def rotate_output(self, hidden: Tensor) -> Tensor:
        """Return what the rotated head takes for a hidden state that the head as loaded took.

        The rotated head has the last norm's gain in itself: where that is 0 it reads nothing.
        """
        if self._residual is None:
            return hidden
        gain = self._base.read(f"{self._architecture.final_norm}.weight").to(hidden.device).double()
        bare = torch.where(gain == 0, 0.0, hidden.double() / gain)
        return self._residual.times(bare).to(hidden.dtype)

    def _columns(self, rows: Tensor, change: _Change) -> Tensor:
        rows = rows.double()
        if change.gain is not None:
            rows = rows * self._base.read(change.gain).to(rows)
        return (rows if change.columns is None else change.columns.times(rows)).float()

    @cached_property
    def _changes(self) -> Mapping[str, _Change]:
        architecture, residual = self._architecture, self._residual
        changes: dict[str, _Change] = {}
        if residual is not None:
            embedding, head = f"{architecture.embedding}.weight", f"{architecture.head}.weight"
            norm = f"{architecture.final_norm}.weight"
            changes[embedding] = _Change(of=embedding, columns=residual)
            changes[norm] = _Change(of=norm, is_gain=True)
            source = embedding if architecture.is_tied else head
            changes[head] = _Change(of=source, gain=norm, columns=residual)
        for index in range(architecture.n_blocks):
            for role in architecture.roles:
                changes |= self._changes_of(index, role)
        return changes

    def _changes_of(self, index: int, role: Role) -> dict[str, _Change]:
        block, changes = f"{self._architecture.blocks}.{index}", {}
        gain = f"{block}.{role.source}.weight" if role.residual and self._residual else None
        if gain is not None:
            changes[gain] = _Change(of=gain, is_gain=True)
        for linear in role.linears:
            columns, rows = self._rotations(index, role, linear)
            if columns is None and not rows:
                continue
            name = f"{block}.{linear}"
            changes[f"{name}.weight"] = _Change(of=f"{name}.weight", gain=gain, columns=columns, rows=rows)
            if rows:
                changes[f"{name}.bias"] = _Change(of=f"{name}.bias", rows=rows)
        return changes

    def _rotations(
        self, index: int, role: Role, linear: str
    ) -> tuple[Rotation | None, tuple[tuple[slice, Rotation], ...]]:
        """Return the rotation of a linear's inputs, and those of its outputs."""
        architecture, residual = self._architecture, self._residual
        if role.residual:
            feeds_heads = "R2" in self._places and role.name == "qkv" and role.feeds.linear == linear
            heads = self._of_head(index).repeated(architecture.n_kv_heads) if feeds_heads else None
            return residual, () if heads is None else ((role.feeds.cut, heads),)
        columns = None
        if role.name == "o" and "R2" in self._places:
            columns = self._of_head(index).repeated(architecture.n_heads)
        if role.name == "down" and "R4" in self._places:
            columns = self._of_mlp
        return columns, () if residual is None else ((slice(None), residual),)

    @property
    def _places(self) -> tuple[str, ...]:
        return self._quant.rotation.places

    @cached_property
    def _residual(self) -> Rotation | None:
        return self._draw("R1") if "R1" in self._places else None

    @property
    def of_keys(self) -> Rotation | None:
        """R3, for whoever changes queries and keys online; None where it was not asked for."""
        return self._draw("R3") if "R3" in self._places else None

    @cached_property
    def _of_mlp(self) -> Rotation:
        return self._draw("R4")

    def _of_head(self, index: int) -> Rotation:
        return self._draw("R2", f" {index}")

    def _draw(self, place: str, which: str = "") -> Rotation:
        kind: Kind = "random" if self._quant.rotate == "random" else "hadamard"
        size = rotated_sizes(self._architecture, self._quant)[place]
        return draw_rotation(kind, size, self._quant.rotation.seed, place + which)


@torch.no_grad()
def probe_logits(view: Model) -> Tensor:
    """Return a model's logits on tokens that depend on nothing, float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, view.architecture.vocab_size, (1, _N_PROBED), generator=generator)
    logits: Tensor = view.fill().module(tokens.to(view.device), use_cache=False).logits
    return logits.float().cpu()


def rotated_sizes(architecture: Architecture, quant: QuantSection) -> dict[str, int]:
    """Return the size of the rotation at each place that a method asks for."""
    (down,) = architecture.role("down").linears
    width = architecture.shapes[down][1]
    head = architecture.head_dim
    sizes = {"R1": architecture.hidden_size, "R2": head, "R3": head, "R4": width}
    return {place: sizes[place] for place in quant.rotation.places}


def check_rotation(architecture: Architecture, quant: QuantSection) -> None:
    """Refuse a place that a family or a size does not allow.

    Raises:
        UserError: naming the place, the reason and what works.
    """
    if quant.rotate == "none":
        return
    sizes = rotated_sizes(architecture, quant)
    if "R1" in sizes and not architecture.writes_straight_to_residual:
        raise UserError(
            f"quant.rotation.places has R1, which family '{architecture.family}' does not let through: a "
            "norm with a gain stands between o or down and the residual stream; use "
            "'quant.rotation.places=[R2,R4]'."
        )
    for place, size in sizes.items():
        if quant.rotate == "hadamard" and block_width(size) == 1:
            raise UserError(
                f"quant.rotate=hadamard has no matrix of size {size}, which is odd and which {place} "
                "needs; use quant.rotate=random, or leave it out of quant.rotation.places."
            )


def describe_rotation(architecture: Architecture, quant: QuantSection) -> dict[str, Any]:
    """Return what a record says of a rotation: sizes, blocks, and the head that became one of its own."""
    sizes = rotated_sizes(architecture, quant)
    widths = {p: block_width(n) for p, n in sizes.items() if quant.rotate == "hadamard"}
    return {
        "sizes": sizes,
        "in_blocks_of": {place: w for place, w in widths.items() if w < sizes[place]},
        "untied_weights": untied_weights(architecture, quant),
    }


def untied_weights(architecture: Architecture, quant: QuantSection) -> int:
    """Return how many weights a rotated model has beside those of the model as loaded."""
    unties = quant.rotate != "none" and "R1" in quant.rotation.places and architecture.is_tied
    return architecture.vocab_size * architecture.hidden_size if unties else 0
