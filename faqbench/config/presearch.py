"""`presearch`: which of FAQ's options are tried, on how many draws, and what they are judged by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from faqbench.config.section import Fraction, Positive, Section, Slug, UserError


class GridSection(Section):
    """One entry of `presearch.grids`: every combination of these values is a candidate."""

    window: tuple[Annotated[int, Field(ge=0)], ...]
    gamma: tuple[Fraction, ...]
    roles: tuple[Literal["all", "residual"], ...]
    source: tuple[Literal["same_role", "next_linear", "consumers"], ...]
    stream: tuple[Literal["full", "quantized"], ...]
    weights: tuple[Literal["uniform", "linear", "geometric", "error"], ...]
    norm: tuple[Literal["none", "mean", "max"], ...]
    fuse: tuple[Literal["convex", "geometric", "max"], ...]


class PresearchSection(Section):
    """`presearch`: the candidates, the draws that each round adds, and the selection text."""

    name: Slug
    grids: tuple[GridSection, ...]
    rounds: tuple[Positive, ...]
    keep: Annotated[float, Field(gt=0.0, lt=1.0)]
    domains: tuple[str, ...] | None
    n_windows: Annotated[int, Field(ge=2)]


def check_presearch(presearch: PresearchSection) -> None:
    """Refuse rounds that are no rising numbers of draws, and grids without a candidate.

    Raises:
        UserError: one sentence with the key and its value.
    """
    rounds = list(presearch.rounds)
    if not rounds or rounds != sorted(set(rounds)):
        raise UserError(
            f"presearch.rounds={rounds} must be rising numbers of calibration draws, e.g. [1, 2, 4]."
        )
    if presearch.domains == ():
        raise UserError("presearch.domains=[] names no text; null takes the calibration's own domain.")
    for grid in presearch.grids:
        empty = [name for name, values in grid if not values]
        if empty:
            raise UserError(f"presearch.grids has no value for {empty[0]}, hence no candidate.")
    if not presearch.grids:
        raise UserError("presearch.grids=[] has no candidate.")
