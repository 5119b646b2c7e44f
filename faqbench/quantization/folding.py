"""Where a role's input scale goes when a model is stored: into whatever produces that input.

A role's weights are rounded as W s, so its input has to be x / s. Legend: s [in_features] of the role.

    qkv, gate_up    x is a norm's output: the norm's gain becomes g / s (an offset norm's 1 + w likewise)
    o, down         x is, up to a factor per channel, what some rows of an earlier linear give (v, up):
                    those rows and their bias are divided by s; of quantized rows their scales are

Under grouped-query attention several channels of o are one row of v, so their scales must be equal.

`fold_block` does the second half while a block is quantized, where scales are stored in a dtype of their
own (`quant.scale_dtype`): dividing a stored scale rounds it once more, and that is to be measured too.
`faqbench.export.fold` does the rest when a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from faqbench.config import UserError
from faqbench.models import Architecture, Role, Rows
from faqbench.quantization.grid import QuantizedLinear, stored_scale


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
