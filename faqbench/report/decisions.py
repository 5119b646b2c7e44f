"""A decision in words, as a figure of its shrinking interval, and as a page of its own.

All is said from the decision's record alone. Differences are shown as readers want them: percent of a
perplexity, points of an accuracy, nats of a divergence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from faqbench import formatting
from faqbench.records.decisions import ArmOfDecision, ContestOfDecision, Decision, LookOfDecision
from faqbench.report import facts
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, drawing_rules, finish
from faqbench.report.layout import render
from faqbench.report.writer import write_folder, write_front_page
from faqbench.statistics import percent_of_log
from faqbench.tables import text_table, to_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNITS = {"ratio": "\N{NO-BREAK SPACE}%", "points": " points", "nats": " nats"}
_HEADS = (
    "difference",
    "with its interval",
    "draws",
    "windows or documents",
    "part of the draws",
    "part of the windows or documents",
    "verdict",
)
_WHY = {
    "lower": "lower", "higher": "higher", "equivalent": "equal within the margin",
    "undecided": "not decided",
}  # fmt: skip


def shown_value(value: float, unit: str) -> float:
    """Return a difference as readers see it: a logarithm in percent, a fraction in points."""
    return percent_of_log(value) if unit == "ratio" else 100 * value if unit == "points" else value


def shown_interval(look: LookOfDecision, unit: str) -> str:
    """Return a difference with its interval, as in `-1.8 % (-2.9 to -0.7)`."""
    numbers = [
        formatting.signed(shown_value(x, unit), _decimals(look, unit))
        for x in (look.mean, look.low, look.high)
    ]
    return f"{numbers[0]}{_UNITS[unit]} ({numbers[1]} to {numbers[2]})"


def shown_margin(value: float, unit: str) -> str:
    """Return a margin to both sides, as in `±0.5 %`."""
    shown = shown_value(value, unit)
    return f"±{formatting.number(shown, 2 if shown < 10 else 1)}{_UNITS[unit]}"


def sample(look: LookOfDecision, decision: Decision) -> str:
    """Return what a look rests on, as in `14 draws, 40 windows`."""
    n_draws = formatting.count(look.n_draws, "draw")
    return f"{n_draws}, {formatting.count(look.n_items, _noun(decision))}"


def answer_of(decision: Decision) -> str:
    """Return the answer in a sentence for each challenger, and the best of several."""
    reference = decision.arms[-1].name
    sentences = [
        _sentence(contest, decision)
        for arm in decision.arms[:-1]
        for contest in decision.contests
        if (contest.a, contest.b) == (arm.name, reference)
    ]
    if len(decision.arms) > 2:
        best = f"The best is {decision.best}" if decision.best else "Which is best is open"
        beaten = [f"{loser} is worse than {winner}" for winner, loser in _beaten(decision)]
        sentences.append("; ".join([best, *beaten]) + ".")
    return " ".join(sentences)


def is_better(contest: ContestOfDecision, decision: Decision) -> bool:
    """Whether a decided contest's first arm is the better one."""
    return (contest.verdict == "higher") == decision.higher_is_better


def write_decision_page(decision: Decision, reports: Path) -> Path:
    """Write `reports/<name>/` with the verdict's page, its Markdown and its figures, and return it.

    Raises:
        UserError: when the folder holds something else, or cannot be written.
    """
    with drawing_rules():
        drawing = draw(decision)
    figure = finish("interval", "How the interval shrank", drawing)
    values = {
        "decision": decision,
        "figures": [figure],
        "facts": _facts(decision),
        "table": text_table(
            "At the last look", _HEADS, [_contest_row(c, decision) for c in decision.contests]
        ),
        "arms": [(arm.name, _kind(arm), ", ".join(arm.run_ids)) for arm in decision.arms],
    }
    files = {
        "index.html": render("decision.html.j2", **values).encode(),
        "report.md": render("decision.md.j2", **values).encode(),
        "figures/interval.svg": figure.svg.encode(),
        "figures/interval.png": figure.png,
        "figures/interval.csv": to_csv(figure.data).encode(),
    }
    write_folder(reports / decision.name, files)
    write_front_page(reports)
    return reports / decision.name


def draw(decision: Decision) -> Drawing:
    """Draw every look's interval, one set of axes per contest of a challenger with the reference."""
    reference = decision.arms[-1].name
    shown = [c for c in decision.contests if c.b == reference]
    unit = decision.unit
    figure, all_axes = style.new_figure(style.WIDTH, 0.5 + 1.9 * len(shown), len(shown), 1)
    for axes, contest in zip(all_axes, shown, strict=True):
        _plot(axes, contest, decision)
    rows = [
        (
            contest.a,
            contest.b,
            str(look.n_draws),
            str(look.n_items),
            *(formatting.signed(shown_value(x, unit), 3) for x in (look.mean, look.low, look.high)),
        )
        for contest in decision.contests
        for look in contest.looks
    ]
    return Drawing(
        figure=figure,
        caption="Dots are the differences at every look, bars their intervals, which hold at all looks at "
        "once, and the line is no difference."
        + ("" if decision.margin is None else " Within the band a difference counts as none."),
        alt=decision.answer,
        header=("arm", "against", "draws", _noun(decision) + "s", "difference", "low", "high"),
        rows=tuple(rows),
    )


def _plot(axes: Axes, contest: ContestOfDecision, decision: Decision) -> None:
    """Draw the interval at every look, the margin, and zero."""
    unit, looks = decision.unit, contest.looks
    places = list(range(len(looks)))
    middle, low, high = (
        [shown_value(getattr(look, name), unit) for look in looks] for name in ("mean", "low", "high")
    )
    if decision.margin is not None:
        band = [shown_value(x, unit) for x in (-decision.margin, decision.margin)]
        axes.axhspan(*band, color=style.RULE, linewidth=0, zorder=0.4)
    axes.axhline(0.0, color=style.INK, linewidth=0.9, zorder=0.5)
    paint = style.color(contest.a.partition("(")[0])
    axes.vlines(places, low, high, color=paint, linewidth=1.6)
    axes.plot(places, middle, "o", color=paint, markersize=4)
    widest = max(max(map(abs, (*low[-1:], *high[-1:], *middle))) * 3, 1e-9)
    bottom, top = min(max(min(low), -widest), 0.0), max(min(max(high), widest), 0.0)
    space = 0.06 * (top - bottom) or 1.0  # all of it may be zero, as of two arms that are one
    axes.set_ylim(bottom - space, top + space)
    every = max(1, math.ceil(len(looks) / 12))
    axes.set_xticks(places[::every], [_tick(looks, i) for i in places[::every]])
    axes.set_title(style.label(f"{contest.a} - {contest.b}: {_WHY[contest.verdict]}", 60))
    axes.set_ylabel(f"difference,{_UNITS[unit]}")
    axes.set_xlabel(f"draws (and {_noun(decision)}s where they grew)")


def _tick(looks: Sequence[LookOfDecision], i: int) -> str:
    grew = i == 0 or looks[i].n_items != looks[i - 1].n_items
    return f"{looks[i].n_draws}\n({looks[i].n_items})" if grew else str(looks[i].n_draws)


def _sentence(contest: ContestOfDecision, decision: Decision) -> str:
    """Say what one contest has shown."""
    look, what = contest.looks[-1], _what(decision)
    on = sample(look, decision).replace(", ", " and ")
    told = f"{shown_interval(look, decision.unit)} after {on}"
    claim = "lower" if "<" in decision.question else "higher"
    match contest.verdict:
        case "undecided":
            return (
                f"Not decided: {what} of {contest.a} differs from that of {contest.b} by {told}; "
                f"{_rest(contest, decision)}."
            )
        case "equivalent":
            margin = decision.margin
            equal = f"equal within {shown_margin(margin, decision.unit)}" if margin else "equal"
            return f"Neither: {what} of {contest.a} and {contest.b} is {equal}: {told}."
        case verdict:
            says = "Yes" if verdict == claim else "No"
            quality = "better" if is_better(contest, decision) else "worse"
            return (
                f"{says}: {contest.a} is {quality} than {contest.b}{_though(look, decision)}; its {what} "
                f"is {verdict}: {told}."
            )


def _though(look: LookOfDecision, decision: Decision) -> str:
    """Return the words for a difference that is one, and smaller than what counts as one."""
    margin = decision.margin
    if margin is None or max(abs(look.low), abs(look.high)) > margin:
        return ""
    return f", though by less than the margin of {shown_margin(margin, decision.unit)}"


def _rest(contest: ContestOfDecision, decision: Decision) -> str:
    look = contest.looks[-1]
    if any(contest.a == loser for _, loser in _beaten(decision)):
        return "it was dropped when another arm was found better"
    if contest.draws_needed is not None:
        n_more = max(contest.draws_needed - look.n_draws, 1)
        return f"about {formatting.count(n_more, 'more draw')} would, if mean and spread stay"
    noun = formatting.count(look.n_items, _noun(decision))
    margin = shown_margin(look.items_margin, decision.unit)
    room = max(abs(look.mean), (decision.margin or 0.0) - abs(look.mean))
    more = (
        f"; more than {math.ceil(look.n_items * (look.items_margin / room) ** 2):,} could" if room else ""
    )
    return f"no number of draws would, since {noun} alone leave {margin}{more}"


def _beaten(decision: Decision) -> list[tuple[str, str]]:
    """Return (better, worse) of the decided contests."""
    decided = [c for c in decision.contests if c.verdict in ("lower", "higher")]
    return [(c.a, c.b) if is_better(c, decision) else (c.b, c.a) for c in decided]


def _facts(decision: Decision) -> list[tuple[str, str]]:
    margin, better = decision.margin, "higher" if decision.higher_is_better else "lower"
    return [
        ("model", decision.model),
        ("decided by", f"{_what(decision)}; {better} is better"),
        ("margin", "none" if margin is None else shown_margin(margin, decision.unit)),
        ("alpha", f"{decision.alpha:g}, over all contests and looks"),
        ("budget", formatting.count(decision.max_draws, "draw")),
        ("settings", " ".join(decision.settings) or "those of the configuration"),
        ("written", decision.updated),
    ]  # fmt: skip


def _contest_row(contest: ContestOfDecision, decision: Decision) -> tuple[str, ...]:
    look, unit = contest.looks[-1], decision.unit
    parts = [shown_margin(x, unit) for x in (look.draws_margin, look.items_margin)]
    return (
        f"{contest.a} - {contest.b}",
        shown_interval(look, unit),
        str(look.n_draws),
        str(look.n_items),
        *parts,
        _WHY[contest.verdict],
    )


def _kind(arm: ArmOfDecision) -> str:
    if arm.is_calibrated:
        return facts.display_method(arm.name)
    return f"{facts.display_method(arm.name)}, without calibration data"


def _what(decision: Decision) -> str:
    return f"{decision.task} {decision.metric.replace('_', ' ')}".strip()


def _noun(decision: Decision) -> str:
    is_text = decision.metric in ("perplexity", "kl_divergence", "top1_agreement")
    return "window" if is_text else "document"


def _decimals(look: LookOfDecision, unit: str) -> int:
    if unit == "nats":
        return 4
    width = abs(shown_value(look.high, unit) - shown_value(look.low, unit))
    return 1 if width >= 0.5 else 2
