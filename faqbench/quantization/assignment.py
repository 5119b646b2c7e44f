"""Which linear gets which grid: the method's own, a pattern's, or none."""

from __future__ import annotations

from fnmatch import fnmatchcase

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.method import method_of
from faqbench.models import Architecture
from faqbench.quantization.grid import Grid


def assign_grids(architecture: Architecture, quant: QuantSection) -> dict[str, Grid]:
    """Return the grid of every linear that is to be quantized, by full name.

    Raises:
        UserError: when a pattern matches no linear, two overrides match the same one, or a group size
            does not divide its in_features.
    """
    if not method_of(quant).quantizes:
        return {}
    shapes = architecture.linear_shapes()
    names = list(shapes)
    for pattern in (*quant.skip, *(o.pattern for o in quant.overrides)):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"Pattern '{pattern}' matches no linear; they look like {names[0]}.")
    grids = {}
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in quant.skip):
            continue
        grids[name] = _grid(name, quant)
        grids[name].check(name, shapes[name][1])
    if not grids:
        raise UserError("quant.skip leaves no linear to quantize; quant=fp is the baseline.")
    return grids


def _grid(name: str, quant: QuantSection) -> Grid:
    matches = [o for o in quant.overrides if fnmatchcase(name, o.pattern)]
    if len(matches) > 1:
        raise UserError(
            f"quant.overrides '{matches[0].pattern}' and '{matches[1].pattern}' both match {name}."
        )
    bits, group_size = quant.bits, quant.group_size
    if matches:
        bits = matches[0].bits or bits
        group_size = matches[0].group_size or group_size
    return Grid(
        bits=bits,
        group_size=group_size,
        symmetric=quant.symmetric,
        symmetric_grid=quant.symmetric_grid,
        scale_dtype=quant.scale_dtype,
    )
