"""How far the linears of another tool's checkpoint are from their parent's, scales folded back.

Tools fold the scales of AWQ and its like into norms and rows, so a stored weight W' is not to be compared
with the parent's W as it lies there. Legend: g, g' the gains of the norm before a role; U, U' the rows that
feed it.

    qkv, gate_up    x' = x g' / g                      W' diag(g' / g) is compared: exact
    o, down         x' = r x, r = <U', U> / <U, U>     W' diag(r) is compared, and U' / r: r is the row's
                                                       least squares fit, 1 but for rounding if unscaled

    weight_error = ||effective W' - W||^2 / ||W||^2

It is None where it is 1 or more: a weight that is farther from the parent's than zero is belongs to
another basis, as of a rotated model, and says nothing of rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faqbench.models import Architecture, Role, Tensors
from faqbench.models.packed import Packed
from faqbench.quantization.folding import fed_by
from faqbench.quantization.reports import LinearReport


def report_packed(packed: Packed, parent: Tensors, architecture: Architecture) -> tuple[LinearReport, ...]:
    """Return a report for each quantized linear of a checkpoint's blocks.

    Args:
        packed: the checkpoint.
        parent: the tensors of the full precision model.
        architecture: of both.
    """
    reports = []
    for block in range(architecture.n_blocks):
        start, rows = f"{architecture.blocks}.{block}.", dict[str, Tensor]()
        for role in architecture.roles:
            columns = _columns(role, start, packed, parent, rows, architecture)
            for linear in role.linears:
                name = f"{start}{linear}"
                original = parent.read(f"{name}.weight").float()
                weight = packed.read(f"{name}.weight").float() * columns
                if linear == role.feeds.linear and fed_by(_next(role, architecture), architecture):
                    rows[linear] = _fitted_rows(weight, original)
                    weight = weight / rows[linear].unsqueeze(-1)
                if (stored := packed.linears.get(name)) is None:
                    continue
                reports.append(
                    LinearReport(
                        block=block,
                        role=role.name,
                        linear=linear,
                        bits=stored.bits,
                        group_size=stored.group_size,
                        alpha=None,
                        clipped_frac=0.0,
                        scale_range=1.0,
                        nearest_error=None,
                        scaled_error=None,
                        clipped_error=None,
                        relative_error=None,
                        correction_damping=None,
                        gptq_damping=None,
                        condition=None,
                        weight_error=_error(weight, original),
                        storage_bits=stored.storage_bits,
                        n_weights=original.numel(),
                        seconds=0.0,
                    )
                )
    return tuple(reports)


def _next(role: Role, architecture: Architecture) -> Role:
    """Return the role that comes after one; the last is followed by the first, of the next block."""
    roles = architecture.roles
    return roles[(roles.index(role) + 1) % len(roles)]


def _columns(
    role: Role,
    start: str,
    packed: Packed,
    parent: Tensors,
    rows: dict[str, Tensor],
    architecture: Architecture,
) -> Tensor:
    """Return what the columns of a role's weights are multiplied by to act on the parent's input."""
    source = fed_by(role, architecture)
    if source is None:
        gains, ours = (
            t.read(f"{start}{role.source}.weight").float() + architecture.norm_offset
            for t in (packed, parent)
        )
        return torch.where(ours == 0, torch.ones_like(ours), gains / ours)
    before = architecture.roles[architecture.roles.index(role) - 1]
    columns = rows[source][before.feeds.cut]
    if role.name == "o" and architecture.is_grouped_query:
        heads = columns.view(architecture.n_kv_heads, 1, architecture.head_dim)
        share = architecture.n_heads // architecture.n_kv_heads
        columns = heads.expand(-1, share, -1).reshape(-1)
    return columns


def _fitted_rows(weight: Tensor, original: Tensor) -> Tensor:
    """Return the factor of each row that is closest to the original's; 1 for rows of zeros."""
    size = original.square().sum(dim=1)
    fitted = (weight * original).sum(dim=1) / size
    return torch.where((size > 0) & (fitted > 0), fitted, torch.ones_like(fitted))


def _error(weight: Tensor, original: Tensor) -> float | None:
    size = float(original.double().square().sum())
    error = float((weight.double() - original.double()).square().sum())
    return error / size if error < size else None
