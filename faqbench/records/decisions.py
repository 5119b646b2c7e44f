"""Decisions: what `faqbench settle` asked, saw at every look, and concluded; runs/_settled/<name>.json.

The runs that it looked at are records of their own. A decision keeps their ids, the interval of each look,
and the terms that were set beforehand (margin, alpha), so that nobody has to believe the verdict. Its keys
are a contract as those of a record are: more may be added, none may change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from faqbench.files import atomic_write, explain_os_error
from faqbench.foreign import is_name, read_json, visible
from faqbench.records.run_record import Amount, Count, Flag, Number, Text, first_fault

DECISION_VERSION = 1
_FOLDER = "_settled"
_MOST_MEGABYTES = 32
_REMEDY = "free some space, or set paths.runs to a folder that can be written"
Verdict = Literal["lower", "higher", "equivalent", "undecided"]
Level = Annotated[Number, Field(gt=0.0, lt=1.0)]


@dataclass(frozen=True, kw_only=True)
class ArmOfDecision:
    """One of the methods that were compared.

    Attributes:
        name: as the question has it, such as `faq` or `faq(gamma=0.7)`.
        is_calibrated: whether its draws differ.
        run_ids: of its runs, in the order of their draws, at the last number of windows.
    """

    name: Text
    is_calibrated: Flag
    run_ids: tuple[Text, ...]


@dataclass(frozen=True, kw_only=True)
class LookOfDecision:
    """A difference A - B as it stood at one look.

    Attributes:
        n_draws: calibration draws.
        n_items: windows or documents that every run scored.
        mean: the difference; of logarithms where the unit is `ratio`.
        low: lower end of its interval, which holds at all looks at once.
        high: its upper end.
        draws_margin: the draws' part of half its width.
        items_margin: the windows' or documents' part.
    """

    n_draws: Count
    n_items: Count
    mean: Number
    low: Number
    high: Number
    draws_margin: Amount
    items_margin: Amount


@dataclass(frozen=True, kw_only=True)
class ContestOfDecision:
    """Two arms, A before B, and how the interval of A - B went.

    Attributes:
        a: the name of arm A.
        b: the name of arm B.
        verdict: `lower` and `higher` speak of A's metric.
        looks: in their order.
        draws_needed: draws after which it would be decided if mean and spread stay; null where it is
            decided, or no number of draws would.
    """

    a: Text
    b: Text
    verdict: Verdict
    looks: tuple[LookOfDecision, ...]
    draws_needed: Count | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A question, the terms it was asked on, and the answer so far.

    Attributes:
        schema_version: the version of these keys.
        name: of its file, and of the folder of its page.
        question: as it was typed.
        model: the model's name.
        task: the protocol or task that decides.
        metric: the name of its number.
        unit: of the differences: `ratio` (logarithms of one), `points` (as fractions) or `nats`.
        higher_is_better: which way is good.
        margin: within which a difference counts as none, in the unit of the differences; null is none.
        alpha: probability of any wrong verdict, over all contests and looks.
        max_draws: the budget.
        arms: the first ones challenge the last.
        contests: every pair of arms that was compared.
        best: the arm that is left when all others were found worse; null otherwise.
        is_over: whether the question is answered; false when the budget ended first.
        answer: the verdict in a sentence or two.
        notes: sentences that a reader of the verdict must see.
        settings: the command line's other overrides.
        updated: ISO 8601, UTC.
    """

    schema_version: int
    name: Text
    question: Text
    model: Text
    task: Text
    metric: Text
    unit: Literal["ratio", "points", "nats"]
    higher_is_better: Flag
    margin: Amount | None
    alpha: Level
    max_draws: Count
    arms: tuple[ArmOfDecision, ...]
    contests: tuple[ContestOfDecision, ...]
    best: Text | None
    is_over: Flag
    answer: Text
    notes: tuple[Text, ...] = ()
    settings: tuple[Text, ...] = ()
    updated: Text = ""
    extra: dict[Text, Any] = field(default_factory=dict)

    @property
    def headline(self) -> ContestOfDecision:
        """The contest that the question names first."""
        reference = self.arms[-1].name
        return next(c for c in self.contests if c.a == self.arms[0].name and c.b == reference)

    @classmethod
    def from_json(cls, raw: Any) -> Decision:
        """Rebuild a decision; keys added by later writers of the same schema are kept in `extra`.

        Raises:
            ValueError: for anything that is no decision, with the first key that is not what it should be.
        """
        if not isinstance(raw, dict) or raw.get("schema_version") != DECISION_VERSION:
            raise ValueError(f"it is no decision of schema_version {DECISION_VERSION}")
        fields = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        later = {k: v for k, v in raw.items() if k not in fields}
        if later and isinstance(extra := fields.get("extra", {}), dict):
            fields["extra"] = extra | later
        try:
            decision = _adapter().validate_python(fields)
        except ValidationError as error:
            raise ValueError(f"malformed decision: {first_fault(error)}") from error
        _check_names(decision)
        return decision


def decision_path(runs: Path, name: str) -> Path:
    """Return where a decision lies."""
    return runs / _FOLDER / f"{name}.json"


def write_decision(runs: Path, decision: Decision) -> Path:
    """Write a decision, replacing what it was before.

    Raises:
        UserError: when it cannot be written.
    """
    target = decision_path(runs, decision.name)
    with explain_os_error("write the decision", target, _REMEDY):
        text = json.dumps(asdict(decision), indent=1, allow_nan=False)
        atomic_write(target, text.encode())
    return target


def read_decision(path: Path) -> Decision:
    """Read a decision.

    Raises:
        ValueError: with the reason, for a damaged one.
    """
    decision = Decision.from_json(read_json(path, _MOST_MEGABYTES))
    if decision.name != path.stem:
        raise ValueError(f"malformed decision: its name is {decision.name!r:.80}")
    return decision


def find_decisions(runs: Path) -> tuple[list[Decision], list[tuple[str, str]]]:
    """Return a folder's decisions in the order of their names, and (file, reason) of the damaged ones."""
    decisions, damaged = [], []
    for path in sorted((runs / _FOLDER).glob("*.json")):
        try:
            decisions.append(read_decision(path))
        except ValueError as error:
            damaged.append((visible(path.name), str(error)))
    return decisions, damaged


@cache
def _adapter() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


def _check_names(decision: Decision) -> None:
    """Refuse names that lead nowhere, or out of the folder."""
    names = [arm.name for arm in decision.arms]
    if not is_name(decision.name):
        raise ValueError(f"malformed decision: name {decision.name!r:.80} names no file")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError("malformed decision: arms are not two or more of different names")
    pairs = [(c.a, c.b) for c in decision.contests]
    if (names[0], names[-1]) not in pairs or {n for p in pairs for n in p} - set(names):
        raise ValueError("malformed decision: its contests are not between its arms")
    if any(not contest.looks for contest in decision.contests):
        raise ValueError("malformed decision: a contest without looks")
    if decision.best is not None and decision.best not in names:
        raise ValueError(f"malformed decision: best is {decision.best!r:.80}, no arm")
