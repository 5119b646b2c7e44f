"""The question a report answers, and the answer in words, generated from the statistics.

The words follow three rules. A difference that does not stand after Holm's correction is called not
decidable, with the smallest difference that these data would have shown. One calibration draw supports no
claim about methods: the words speak of "this one calibration set", and of what a second draw would have
to show. Nothing is claimed about pairs that cannot be paired. Above many settings stands an overview: how
often each method wins, loses or cannot be told apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import BEST, Analysis, Contest, best_of
from faqbench.report.columns import Column, in_words
from faqbench.report.comparisons import EQUAL, Comparison
from faqbench.report.difference_tables import (
    detectable,
    difference,
    difference_decimals,
    difference_unit,
    flips_text,
    in_unit,
    with_unit,
)
from faqbench.statistics import exp, percent_of_log
from faqbench.tables import Heading, Table, TableCell, text_cell

_SOME_DRAWS = 5
_MANY_SETTINGS = 4
_Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence of the answer.

    Attributes:
        setting: where the claim holds, as in "3 bits".
        lead: the claim; bold only when `decided`.
        evidence: the numbers behind it.
        decided: whether the claim is significant.
        minor: whether it is about a method that nobody expects to win, such as RTN.
    """

    setting: str
    lead: str
    evidence: str
    decided: bool
    minor: bool = False


def question(analysis: Analysis) -> str:
    """Return the question that a panel's rows put."""
    panel = analysis.panel
    names = list(dict.fromkeys(facts.display_method(r.method) for r in panel.rows if not r.is_baseline))
    if not names:
        return f"How good is {panel.model} before it is quantized?"
    widths = sorted({c.widths for c in analysis.contests}, key=lambda w: (w.startswith("W"), len(w), w))
    bits = [w for w in widths if not w.startswith("W")]
    places = [in_words(formatting.listing(bits))] if bits else []
    where = f"at {formatting.listing([*places, *widths[len(bits) :]])}"
    if len(names) == 1:
        return f"What does {names[0]} cost {panel.model} {where}?"
    asked = f"Which of {formatting.listing(names)} should quantize {panel.model} {where}"
    if analysis.baseline is None or not analysis.main.comparisons:
        return f"{asked}?"
    return f"{asked}, and is any difference from {facts.display_method(analysis.baseline)} real?"


def verdicts(analysis: Analysis) -> list[Statement]:
    """Return the answer: per contest who leads, then each method against the baseline."""
    kinds = telling_kinds(analysis)
    others = {c.a.method for _, c in analysis.main.comparisons} - {"rtn"}
    sentences = []
    for contest in analysis.contests:
        sentences += [
            leader
            for i, column in enumerate(analysis.panel.columns)
            if column.kind in kinds and (leader := _leader(analysis, contest, i))
        ]
        against = [
            _verdict(contest, c, minor=c.a.method == "rtn" and bool(others))
            for k, c in analysis.main.comparisons
            if k is contest and c.column.kind in kinds
        ]
        sentences += sorted(against, key=lambda verdict: verdict.minor)
    return sentences


def telling_kinds(analysis: Analysis) -> set[str]:
    """Return which columns are worth a sentence: not single tasks where there is their mean."""
    has_mean = any(column.kind == "mean_acc" for column in analysis.panel.columns)
    return {"perplexity", "mean_acc" if has_mean else "acc"}


def _leader(analysis: Analysis, contest: Contest, index: int) -> Statement | None:
    """Say who is best of three or more contenders, or who cannot be told from the best."""
    column, rows = analysis.panel.columns[index], analysis.panel.rows
    marks = {row: analysis.main.marks.get((row, index)) for row in contest.rows}
    ahead = [rows[row].short_name for row, mark in marks.items() if mark]
    contenders = [row for row in contest.rows if rows[row].method != "rtn"]
    if len(contenders) < 3 or not ahead:
        return None  # the comparison with the baseline says it all
    what = measure(column)
    if BEST in marks.values():
        best = next(rows[row].short_name for row, mark in marks.items() if mark == BEST)
        return Statement(
            setting=contest.label,
            lead=f"{best} has the best {what}",
            evidence="It is significantly better than every other method here.",
            decided=True,
        )
    best_row = best_of(analysis.panel, contest, column)
    assert best_row is not None, "a marked column has a best row"
    name = rows[best_row].short_name
    close = [other for other in ahead if other != name]
    everyone = "no other method" if len(close) == len(contest.rows) - 1 else ""
    return Statement(
        setting=contest.label,
        lead=f"The best {what} is undecided",
        evidence=f"{name} is ahead by value, but "
        + (
            f"{everyone} can be told from it."
            if everyone
            else f"{formatting.listing(close)} cannot be told from it."
        ),
        decided=False,
    )


def measure(column: Column) -> str:
    """Return what a column measures, in words."""
    if column.kind == "mean_acc":
        return f"mean accuracy over {len(column.parts)} tasks"
    names = {"perplexity": "perplexity", "kl": "divergence", "agreement": "agreement", "acc": "accuracy"}
    return f"{names.get(column.kind, column.metric)} on {column.task}"


def draws_note(analysis: Analysis) -> str:
    """Return what the number of calibration draws allows to be said."""
    calibrated = [row for row in analysis.panel.rows if row.is_calibrated]
    if not calibrated:
        return ""
    fewest = min(len(row.runs) for row in calibrated)
    if fewest == 1:
        return (
            "At least one method was calibrated on a single draw: what is said of it here is about that "
            "one calibration set, not about the method, and no value is marked as the best. Add draws "
            "with seed=0,1,2,3,4 to compare the methods."
        )
    return f"Every calibrated method was run on at least {fewest} calibration draws."


def _verdict(contest: Contest, c: Comparison, *, minor: bool) -> Statement:
    """Return one comparison in words."""
    a, b, what = c.a.short_name, c.b.short_name, measure(c.column)
    if c.refused:
        lead, evidence = f"{a} and {b} cannot be paired in {what}", f"{c.refused}."
    elif c.is_significant:
        lead, evidence = f"{a} is {c.verdict} than {b} in {what}", f"{describe(c)}."
    elif c.stands:
        place = f"{'ahead of' if c.a_is_better else 'behind'} {b}"
        lead = f"On this one calibration set {a} is {place} in {what}"
        evidence = f"{describe(c)}. {_second_draw(c)}"
    elif c.is_equal:
        lead = f"{a} equals {b} within the margin in {what}"
        lead = f"On this one calibration set {lead}" if c.is_of_one_draw else lead
        evidence = f"{describe(c)}. {_equality(c)}"
    else:
        lead = f"{a} against {b} in {what} is not decidable"
        evidence = f"{describe(c)}. {_would_show(c)}"
    if c.is_significant and c.is_equal:
        evidence += f" It is within the margin all the same: {_equality(c)}"
    if c.churn is not None:
        evidence += f" Flips: {flips_text(c.churn)}."
    return Statement(
        setting=contest.label,
        lead=lead,
        evidence=evidence[:1].upper() + evidence[1:],
        decided=c.is_significant or (c.is_equal and not c.stands and not c.is_of_one_draw),
        minor=minor,
    )


def describe(c: Comparison) -> str:
    """Return a comparison's numbers in words."""
    p = formatting.p_value(c.p_holm)
    p = (p if p.startswith("<") else f"= {p}").replace(" ", "\N{NO-BREAK SPACE}")
    tail = f"p\N{NO-BREAK SPACE}{p} after Holm, {_basis(c)}"
    if c.is_ratio:
        ratio, low, high = (formatting.number(exp(x), 3) for x in (c.effect, c.low, c.high))
        return f"ratio {ratio}, 95\N{NO-BREAK SPACE}% interval {low} to {high}, {tail}"
    decimals = difference_decimals(c)
    value, low, high = (formatting.signed(x, decimals) for x in difference(c))
    return f"{value} {difference_unit(c.column)}, 95\N{NO-BREAK SPACE}% interval {low} to {high}, {tail}"


def _basis(c: Comparison) -> str:
    unit = formatting.count(c.n, "item" if c.column.array is None else "window")
    if c.is_of_one_draw and c.n_earlier:
        return f"{unit}, one draw, with the spread of {c.n_earlier} earlier draws ({c.earlier})"
    if c.n_draws < 2:
        return f"{unit}, one draw" if c.is_of_one_draw else unit
    share = f"{100 * c.draw_share:.0f}\N{NO-BREAK SPACE}% of the variance"
    return f"{unit}, {c.n_draws} draws ({share})"


def _second_draw(c: Comparison) -> str:
    """Say which results of another draw would make the difference one of the methods.

    Over D draws whose effects have the mean m and the standard deviation s, |m| must be more than
    t(D - 1) s / sqrt(D); with two, of which one is known, that bounds the other. Windows and items have
    errors too, so this is the least that is needed.
    """
    from scipy.special import stdtrit

    t = float(stdtrit(1, 0.975))
    near, far = (c.effect * x for x in ((t - 1) / (t + 1), (t + 1) / (t - 1)))
    spread = abs(c.effect) * math.sqrt(_SOME_DRAWS) / float(stdtrit(_SOME_DRAWS - 1, 0.975))
    if c.is_ratio:
        low, high = (formatting.number(exp(x), 3) for x in sorted((near, far)))
        needed = f"a ratio from {low} to {high}"
        most = f"{formatting.number(percent_of_log(spread), 1)}\N{NO-BREAK SPACE}%"
    else:
        scale, decimals = (100, 1) if c.column.is_percent else (1, 4)
        low, high = (formatting.signed(scale * x, decimals) for x in sorted((near, far)))
        unit = difference_unit(c.column)
        needed = f"{low} to {high} {unit}"
        most = f"{formatting.number(scale * spread, decimals)} {unit}"
    return (
        f"About the methods it decides nothing: a second draw (seed=0,1) would have to give {needed}, or "
        f"{_SOME_DRAWS} draws agree to a standard deviation of {most}."
    )


def _equality(c: Comparison) -> str:
    p = formatting.p_value(c.p_equal_holm)
    p = (p if p.startswith("<") else f"= {p}").replace(" ", "\N{NO-BREAK SPACE}")
    return f"Margin {with_unit(c, in_unit(c, c.margin))}, p\N{NO-BREAK SPACE}{p} for equality after Holm."


def _would_show(c: Comparison) -> str:
    if not c.stderr > 0:
        return "No window or item tells the two apart."
    least = with_unit(c, detectable(c))
    would_show = f"Before correction, a difference of {least} would be found four times in five"
    if math.isnan(c.margin):
        return f"{would_show}."
    return f"{would_show}; equality within {with_unit(c, in_unit(c, c.margin))} is not shown either."


def overview_table(analysis: Analysis, name: str) -> Table | None:
    """Return one row per pair of methods and one column per metric, or None for few settings."""
    if len(analysis.contests) < _MANY_SETTINGS:
        return None
    kinds = telling_kinds(analysis)
    columns = [column for column in analysis.panel.columns if column.kind in kinds]
    tallies: dict[_Pair, dict[Column, list[Comparison]]] = {}
    for _, c in analysis.main.comparisons:
        if c.column in columns and not c.refused:
            row = tallies.setdefault((c.a.short_name, c.b.short_name), {})
            row.setdefault(c.column, []).append(c)
    if not tallies:
        return None
    return Table(
        name=name,
        caption="Over all settings",
        headings=(
            Heading(text="method", numeric=False),
            Heading(text="against", numeric=False),
            *(Heading(text=measure(c), sub=difference_unit(c), numeric=False) for c in columns),
        ),
        rows=tuple(
            (text_cell(a), text_cell(b), *(_tally(tally.get(column, [])) for column in columns))
            for (a, b), tally in tallies.items()
        ),
    )


def _tally(comparisons: list[Comparison]) -> TableCell:
    """Count in words what the comparisons of a row have shown."""
    if not comparisons:
        return TableCell(text=formatting.NONE)
    n_better = sum(c.is_significant and c.a_is_better for c in comparisons)
    n_worse = sum(c.is_significant and not c.a_is_better for c in comparisons)
    one_draw = [c for c in comparisons if c.stands and c.is_of_one_draw]
    n_ahead = sum(c.a_is_better for c in one_draw)
    n_behind = len(one_draw) - n_ahead
    counts = (
        f"{n} {word}"
        for n, word in (
            (n_better, "better"),
            (n_worse, "worse"),
            (n_ahead, "ahead on one calibration set"),
            (n_behind, "behind on one calibration set"),
            (sum(c.is_equal and not c.stands for c in comparisons), EQUAL),
            (sum(not c.stands and not c.is_equal for c in comparisons), "not decidable"),
        )
        if n
    )
    values = [difference(c)[0] for c in comparisons]
    low, high = (formatting.signed(value, 1) for value in (min(values), max(values)))
    return text_cell(f"{', '.join(counts)}; {low} to {high}")
