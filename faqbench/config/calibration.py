"""`calibration` and `scenario`: which tokens the statistics are taken from, and how they are biased.

A scenario is data: every field is one departure from what `calibration` says, and null or false leaves
that part alone. The functions behind the fields are in `faqbench.calibration.scenarios`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from faqbench.config.section import DType, Fraction, Positive, Section, Slug, UserError

HUB_PREFIX = "hub:"
TABLE_SUFFIXES = (".jsonl", ".parquet")
MAX_CHARACTERS = 100_000_000  # conf's, which an identity leaves out: ids are older than the bound
Power = Annotated[float, Field(ge=-8.0, le=8.0)]
_TOLERANCE = 1e-6


class HubSection(Section):
    """`calibration.hub`: which rows of a data set of the hub are read, for domains `hub:OWNER/NAME`."""

    config: str | None
    split: str
    revision: str | None
    n_rows: Positive


class CalibrationSection(Section):
    """`calibration`: which tokens the statistics are taken from."""

    domain: str
    mixture: dict[str, Fraction] | None
    column: str
    hub: HubSection
    max_characters: Positive
    n_samples: Positive
    seq_len: Annotated[int, Field(ge=8)]
    seed: Annotated[int, Field(ge=0)]
    documents: Literal["joined", "apart"]
    add_bos: bool
    allow_repeat: bool
    tokens: Literal["all", "drop_first", "norm_cap"]
    dtype: DType
    batch_size: Positive
    n_reference: Positive


class ScenarioSection(Section):
    """`scenario`: how the calibration set departs from what `calibration` says; null and false keep it."""

    name: Slug
    domain: str | None
    mixture: dict[str, Fraction] | None
    skew: Fraction | None
    n_samples: Positive | None
    min_characters: Positive | None
    max_characters: Positive | None
    length_power: Power | None
    rarity: Power | None
    copies: Positive | None
    shuffle_tokens: bool
    random_tokens: bool
    noise_rate: Fraction | None
    leak: bool
    allow_overlap: tuple[str, ...]


def matched() -> ScenarioSection:
    """Return the scenario that leaves everything as `calibration` says."""
    return ScenarioSection(
        name="matched",
        domain=None,
        mixture=None,
        skew=None,
        n_samples=None,
        min_characters=None,
        max_characters=None,
        length_power=None,
        rarity=None,
        copies=None,
        shuffle_tokens=False,
        random_tokens=False,
        noise_rate=None,
        leak=False,
        allow_overlap=(),
    )


def mixture_of(calibration: CalibrationSection, scenario: ScenarioSection) -> dict[str, float]:
    """Return the domains that windows come from and their shares; a share of zero is left out."""
    mixture = calibration.mixture or {calibration.domain: 1.0}
    other = scenario.mixture or ({scenario.domain: 1.0} if scenario.domain else None)
    return shares_of(mixture, other, scenario.skew)


def shares_of(
    mixture: Mapping[str, float], other: Mapping[str, float] | None, skew: float | None
) -> dict[str, float]:
    """Return the shares of a mixture of which `skew`, or all, comes from another one."""
    other, skew = mixture if other is None else other, 1.0 if skew is None else skew
    shares = {
        domain: (1.0 - skew) * mixture.get(domain, 0.0) + skew * other.get(domain, 0.0)
        for domain in {**mixture, **other}
    }
    return {domain: share for domain, share in shares.items() if share > 0.0}


def is_hub_set(domain: str) -> bool:
    """Say whether a domain names a data set of the hub that no yaml of ours describes."""
    return domain.startswith(HUB_PREFIX)


def is_table(domain: str) -> bool:
    """Say whether a domain is the path of a file with columns, whether or not the file is there."""
    return domain.lower().endswith(TABLE_SUFFIXES)


def check_calibration(calibration: CalibrationSection, scenario: ScenarioSection) -> None:
    """Refuse combinations of `calibration` and `scenario` that mean nothing.

    Raises:
        UserError: one sentence with the keys and their values.
    """
    _check_mixture("calibration.mixture", calibration.mixture)
    _check_mixture("scenario.mixture", scenario.mixture)
    if scenario.domain and scenario.mixture:
        raise UserError(
            f"scenario.domain={scenario.domain} and scenario.mixture are both set; a scenario has one "
            "or the other."
        )
    if scenario.skew is not None and not (scenario.domain or scenario.mixture):
        raise UserError(
            f"scenario.skew={scenario.skew} is the share of windows from scenario.domain or "
            "scenario.mixture, and neither is set."
        )
    low, high = scenario.min_characters, scenario.max_characters
    if low is not None and high is not None and low > high:
        raise UserError(
            f"scenario.min_characters={low} is more than scenario.max_characters={high}, so no text "
            "is left."
        )


def _check_mixture(key: str, mixture: Mapping[str, float] | None) -> None:
    if mixture is None:
        return
    total = sum(mixture.values())
    if abs(total - 1.0) > _TOLERANCE:
        spelled = ", ".join(f"{domain}: {weight:g}" for domain, weight in mixture.items())
        raise UserError(f"{key}={{{spelled}}} has weights that sum to {total:g}; they must sum to 1.")
