"""Where a role's input scale goes when a model is stored: into whatever produces that input.

A role's weights are rounded as W s, so its input has to be x / s. Legend: s [in_features] of the role.

    qkv, gate_up    x is a norm's output: the norm's gain becomes g / s (an offset norm's 1 + w likewise)
    o, down         x is, up to a factor per channel, what some rows of an earlier linear give (v, up):
                    those rows and their bias are divided by s; of quantized rows their scales are

Under grouped-query attention several channels of o are one row of v, so their scales must be equal.

`fold_block` does the second half while a block is quantized, where scales are stored in a dtype of their
own (`quant.scale_dtype`): dividing a stored scale rounds it once more, and that is to be measured too.
`faqbench.export.fold` does the rest when a checkpoint is written.

`report_packed` goes the other way: how far the linears of another tool's checkpoint are from their
parent's, scales folded back.

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

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from faqbench.config import UserError
from faqbench.models import Architecture, Role, Rows, Tensors
from faqbench.models.packed import Packed
from faqbench.quantization.grid import QuantizedLinear, stored_scale
from faqbench.quantization.reports import LinearReport


def fed_by(role: Role, architecture: Architecture) -> str | None:
    """Return the linear of a block whose rows produce a role's input; None where a norm does."""
    return None if role.residual else _rows(role, architecture).linear


def row_scale(role: Role, input_scale: Tensor, n_rows: int, architecture: Architecture) -> Tensor:
    """Return what the rows of the linear that a role reads are to be divided by, 1 for other rows.

    Args:
        role: one whose input a linear produces.
        input_scale: [in_features] of the role.
        n_rows: of that linear.
        architecture: of the model.

    Raises:
        UserError: when channels that are one row have scales of their own.
    """
    rows = _rows(role, architecture)
    if role.name == "o" and architecture.is_grouped_query:
        heads = input_scale.view(architecture.n_kv_heads, -1, architecture.head_dim)
        if not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise UserError(
                f"The scales of {role.linears[0]} differ between query heads that share a value head, so "
                f"no row of {rows.linear} can take them; quant.search.gqa_scale=repeat makes them equal."
            )
        input_scale = heads[:, 0].reshape(-1)
    divisor = input_scale.new_ones(n_rows)
    divisor[rows.cut] = input_scale
    return divisor


def fold_block(
    linears: Mapping[str, QuantizedLinear],
    architecture: Architecture,
    store: Callable[[str, QuantizedLinear], object],
) -> None:
    """Divide the stored scales of rows that a scaled role reads, and give what came of it to `store`.

    Args:
        linears: the quantized linears of one block, by name relative to it.
        architecture: of the model.
        store: given every linear that changed.
    """
    for role in architecture.roles:
        scales = [linears[n].input_scale for n in role.linears if n in linears]
        source = fed_by(role, architecture)
        if source is not None and source in linears and scales and scales[0] is not None:
            fed = linears[source]
            divisor = row_scale(role, scales[0], len(fed.scale), architecture)
            scale = stored_scale(fed.scale / divisor.unsqueeze(-1), fed.grid)
            store(source, replace(fed, scale=scale, output_scale=divisor))


def _rows(role: Role, architecture: Architecture) -> Rows:
    """Return the rows that a role's input comes from: what the role before it feeds."""
    index = architecture.roles.index(role)
    return architecture.roles[index - 1].feeds


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
