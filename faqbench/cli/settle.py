"""The verb `settle`: ask, look, and say what came out, until a claim is decided."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from faqbench.cli.cells import run_cell, tidied
from faqbench.cli.composing import Cell
from faqbench.cli.console import console_progress, print_text
from faqbench.cli.launching import Sweep, check_launcher, launch, safe_dtypes
from faqbench.cli.question import Inquiry, read_inquiry
from faqbench.cli.surroundings import current_verbosity
from faqbench.cli.workers import kind_of, n_workers
from faqbench.config import run_id
from faqbench.config.identity import identity_hash
from faqbench.records import (
    DECISION_VERSION,
    ArmOfDecision,
    ContestOfDecision,
    Decision,
    LookOfDecision,
    RunRecord,
    read_record,
    write_decision,
)
from faqbench.report import (
    PairedStore,
    answer_of,
    sample,
    shown_interval,
    shown_margin,
    write_decision_page,
)
from faqbench.statistics import Look, Verdict, draws_needed, fewest_draws, look_at

_BAR = 48
_LONGEST_SLUG = 60
_WINDOWS_ALONE = "No arm reads calibration data: one draw is all there is, and its texts alone decide."


def settle(arguments: list[str]) -> int:
    """Decide a claim with as few runs as the truth allows: settle "faq < awq" metric=… margin=0.5% key=….

    All arms run on the same calibration draws, seeds 0, 1, 2, and so on, until the interval of their
    paired difference lies on one side of zero, or within ± margin (equivalent), or max_draws=40 are used
    up. The interval holds at all looks at once (statistics/sequential.py), so typing the same command
    again goes on where it stopped, and a larger max_draws makes no verdict less sure. Where windows or
    documents, not draws, dominate the interval, there are twice as many from then on, unless limit= caps
    them.

    Several challengers, "faq, qep-awq < awq", share alpha=0.05; an arm that is worse than another is
    dropped until one is left. faq(gamma=0.7) is an arm with overrides of its own; all other overrides,
    those of a launcher among them, are every arm's. evaluation.tasks=[] leaves out what does not decide.
    The decision is kept in runs/_settled/, its page in reports/.
    """
    from faqbench.tracking import tracker, wait_for_followers

    inquiry = read_inquiry(arguments)
    settling = Settling(inquiry)
    check_launcher(settling.request.hydra)
    for note in [*safe_dtypes(inquiry.experiments), *_advice(inquiry)]:
        console_progress().note(note)
    first = inquiry.experiments[0]
    with tidied(first.paths.runs):
        if not settling.settle():
            for problem in settling.problems:
                print(f"faqbench: {problem}", file=sys.stderr)
            print("faqbench: the question stays open; the same command goes on.", file=sys.stderr)
            return 1
        decision = settling.decision()
        path = write_decision(first.paths.runs, decision)
        page = write_decision_page(decision, first.paths.reports)
    settling.show_looks(decision)
    tracker(first.tracking, first.paths.runs).show_report(page)
    for sentence in (decision.answer, *decision.notes):
        print_text(sentence)
    print(f"Decision: {path}")
    print(f"Page: {page / 'index.html'}")
    wait_for_followers()
    return 0


@dataclass(kw_only=True)
class Duel:
    """Two arms, by index, and every look at their difference."""

    a: int
    b: int
    looks: list[tuple[Look, int]] = field(default_factory=list)  # and the number of windows
    verdict: Verdict = "undecided"


class Settling:
    """A question on its way to an answer."""

    def __init__(self, inquiry: Inquiry) -> None:
        self.inquiry = inquiry
        self.request = inquiry.draws(0, range(1))
        self.problems: list[str] = []
        first = inquiry.experiments[0]
        self._first = first
        self._n_items = first.n_windows() if inquiry.metric.is_of_windows else first.n_documents()
        self._can_grow = first.limit is None and self._n_items is not None
        self._n_growths = 0
        self._n_before = 0  # how many there were when more were asked for, until these are looked at
        self._is_over = False
        self._notes: list[str] = []
        self._alive = list(range(len(inquiry.arms)))
        pairs = itertools.combinations(self._alive, 2)
        self.contests = [Duel(a=a, b=b) for a, b in pairs]
        self._runs: dict[str, RunRecord] = {}
        self._is_news = False  # whether a look's runs were made by this command
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._composed: dict[tuple[int, int | None], list[Cell]] = {}
        self._store = PairedStore(first.paths.runs)
        self.name = self._name()

    def settle(self) -> bool:
        """Run and look until there is an answer or nothing left to ask; false when a cell failed."""
        calibrated = any(e.needs_calibration for e in self.inquiry.experiments)
        n_draws = fewest_draws(self.inquiry.contest_alpha) if calibrated else 1
        while True:
            if not self._run(n_draws):
                return False
            self._look(n_draws)
            if not self._open:
                self._is_over = True
                return True
            if self._grows():
                continue
            if self._is_in_vain() or n_draws >= self.inquiry.max_draws:
                return True
            n_draws = min(n_draws + self._at_once(), self.inquiry.max_draws)

    def cells(self, arm: int, n_draws: int) -> list[Cell]:
        """Return an arm's first draws at the present number of windows or documents."""
        n = n_draws if self.inquiry.experiments[arm].needs_calibration else 1
        n_items = self._n_items if self._n_growths else None
        composed = self._composed.setdefault((arm, n_items), [])
        if len(composed) < n:
            composed += self.inquiry.draws(arm, range(len(composed), n), n_items).cells
        return composed[:n]

    @property
    def _open(self) -> list[Duel]:
        return [
            c
            for c in self.contests
            if c.verdict == "undecided" and c.a in self._alive and c.b in self._alive
        ]

    def _run(self, n_draws: int) -> bool:
        """Run the cells that a look needs; false, with the problems, when one of them failed."""
        cells = [cell for arm in self._alive for cell in self.cells(arm, n_draws)]
        new = [cell for cell in cells if run_id(cell.experiment) not in self._runs]
        if not new:
            return True
        run_ids = list(dict.fromkeys([*self._runs, *(run_id(c.experiment) for c in new)]))
        sweep = Sweep(
            cells=new, name=self.name, run_ids=run_ids, run_cell=run_cell, overrides=self.inquiry.overrides
        )
        _, self.problems = launch(sweep)
        for cell in new:
            name = run_id(cell.experiment)
            try:
                record = read_record(self._first.paths.runs / name)
            except ValueError as error:
                self.problems.append(f"{name}: {error}")
                continue
            if record.status == "finished":
                self._runs[name] = record
            else:
                self.problems.append(f"{name} failed: {record.error_line}")
        self._is_news = any(r.started >= self._began for r in self._runs.values())
        return not self.problems

    def records(self, arm: int, n_draws: int) -> list[RunRecord]:
        """Return an arm's runs at the present number of windows or documents."""
        ids = [run_id(cell.experiment) for cell in self.cells(arm, n_draws)]
        return [self._runs[name] for name in ids if name in self._runs]

    def _look(self, n_draws: int) -> None:
        """Look at all open contests after so many draws; close those that are decided."""
        metric, contests = self.inquiry.metric, self._open
        differences = [
            self._store.differences(
                *(self.records(arm, n_draws) for arm in (contest.a, contest.b)),
                kind=metric.kind,
                task=metric.task,
            )
            for contest in contests
        ]
        if self._n_before and max(paired.n for paired in differences) == self._n_before:
            self._can_grow, self._n_growths = False, self._n_growths - 1
            self._n_items, self._n_before = self._n_before, 0
            return  # there were no more of them
        self._n_before = 0
        names = [arm.name for arm in self.inquiry.arms]
        seen = set()
        for contest, paired in zip(contests, differences, strict=True):
            if not self._draws_differ(contest) and contest.looks and contest.looks[-1][1] == paired.n:
                continue  # nothing new
            seen.add((names[contest.a], names[contest.b]))
            look = look_at(
                paired.differences,
                alpha=self.inquiry.contest_alpha,
                draws_differ=self._draws_differ(contest),
                n_growths=self._n_growths,
                weights=paired.weights,
            )
            contest.looks.append((look, paired.n))
            contest.verdict = look.verdict(self.inquiry.margin or 0.0)
        self._drop_beaten()
        decision = self.decision()
        write_decision(self._first.paths.runs, decision)
        _print_look(decision, seen)
        if self._is_news and self._open:
            self.show_looks(decision)

    def _drop_beaten(self) -> None:
        for contest in self.contests:
            if contest.verdict in ("lower", "higher"):
                a_is_better = (contest.verdict == "higher") == self.inquiry.metric.higher_is_better
                worse = contest.b if a_is_better else contest.a
                self._alive = [arm for arm in self._alive if arm != worse]

    def _draws_differ(self, contest: Duel) -> bool:
        return any(self.inquiry.experiments[i].needs_calibration for i in (contest.a, contest.b))

    def _grows(self) -> bool:
        """Ask for twice as many windows or documents where they dominate an open interval."""
        if not any(c.looks[-1][0].items_dominate for c in self._open):
            return False
        n_there = max(c.looks[-1][1] for c in self._open)
        asked = self._n_items
        if not self._can_grow or asked is None or n_there < asked:
            self._note_why_not(n_there)
            return False
        self._n_items, self._n_growths, self._n_before = 2 * asked, self._n_growths + 1, n_there
        noun = self.inquiry.metric.items
        console_progress().note(f"{noun} dominate the interval: {2 * asked} from now on instead of {asked}")
        return True

    def _note_why_not(self, n_there: int) -> None:
        limit = self._first.limit
        noun = self.inquiry.metric.items
        why = f"limit={limit} caps them" if limit is not None else "there are no more"
        self._notes = [f"The {n_there} {noun} dominate the interval, and {why}."]

    def _is_in_vain(self) -> bool:
        return all(c.looks[-1][0].is_in_vain(self.inquiry.margin or 0.0) for c in self._open)

    def _at_once(self) -> int:
        launcher = self.request.hydra.launcher
        workers = n_workers(launcher) if kind_of(launcher) != "basic" else 1
        n_calibrated = sum(self.inquiry.experiments[i].needs_calibration for i in self._alive)
        return self.inquiry.at_once or max(1, workers // max(n_calibrated, 1))

    def _name(self) -> str:
        inquiry = self.inquiry
        ids = sorted(run_id(e) for e in inquiry.experiments)
        terms = {"ids": ids, "metric": inquiry.metric.name, "margin": inquiry.margin}
        digest = identity_hash(terms | {"alpha": inquiry.alpha, "question": inquiry.text})[:8]
        words = "".join(c if c.isascii() and c.isalnum() else "-" for c in inquiry.text.lower())
        model = self._first.model.name.lower()
        slug = "-".join(filter(None, f"{model}-{words}".split("-")))[:_LONGEST_SLUG].rstrip("-")
        return f"settle-{slug}-{digest}"

    def decision(self) -> Decision:
        """Return what is known so far."""
        inquiry, names = self.inquiry, [arm.name for arm in self.inquiry.arms]
        contests = tuple(_told(c, inquiry, names) for c in self.contests if c.looks)
        n = max(look.n_draws for c in contests for look in c.looks)
        is_one_left = len(self._alive) == 1
        notes = list(self._notes)
        if not any(e.needs_calibration for e in inquiry.experiments):
            notes.append(_WINDOWS_ALONE)
        undecided = Decision(
            schema_version=DECISION_VERSION,
            name=self.name,
            question=inquiry.text,
            model=self._first.model.name,
            task=inquiry.metric.task or "mean over tasks",
            metric=inquiry.metric.record_name,
            unit=inquiry.metric.unit,
            higher_is_better=inquiry.metric.higher_is_better,
            margin=inquiry.margin,
            alpha=inquiry.alpha,
            max_draws=inquiry.max_draws,
            arms=tuple(
                ArmOfDecision(
                    name=name,
                    is_calibrated=inquiry.experiments[i].needs_calibration,
                    run_ids=tuple(r.run_id for r in self.records(i, n)),
                )
                for i, name in enumerate(names)
            ),
            contests=contests,
            best=names[self._alive[0]] if is_one_left else None,
            is_over=self._is_over,
            answer="",
            notes=tuple(notes),
            settings=tuple(_settings(inquiry)),
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return replace(undecided, answer=answer_of(undecided))

    def show_looks(self, decision: Decision) -> None:
        """Show the interval of every look where the user tracks runs."""
        from faqbench.tracking import tracker

        points: dict[int, dict[str, float]] = {}
        for contest in decision.contests:
            for i, look in enumerate(contest.looks):
                values = {"mean": look.mean, "low": look.low, "high": look.high}
                point = points.setdefault(i, {"settle/draws": float(look.n_draws)})
                point |= {f"settle/{contest.a} - {contest.b}/{k}": v for k, v in values.items()}
        service = tracker(self._first.tracking, self._first.paths.runs)
        service.show_points(self.name, {"question": decision.question}, list(points.values()))


def _told(contest: Duel, inquiry: Inquiry, names: Sequence[str]) -> ContestOfDecision:
    """Return a contest as the record of a decision has it."""
    last, _ = contest.looks[-1]
    needed = None
    if contest.verdict == "undecided":
        margin = inquiry.margin or 0.0
        needed = draws_needed(last, alpha=inquiry.contest_alpha, margin=margin)
    return ContestOfDecision(
        a=names[contest.a],
        b=names[contest.b],
        verdict=contest.verdict,
        looks=tuple(
            LookOfDecision(
                n_draws=look.n_draws,
                n_items=n_items,
                mean=look.mean,
                low=look.low,
                high=look.high,
                draws_margin=look.draws_margin,
                items_margin=look.items_margin,
            )
            for look, n_items in contest.looks
        ),
        draws_needed=needed,
    )


def _advice(inquiry: Inquiry) -> Iterator[str]:
    """Say what the evaluation makes that does not decide."""
    evaluation, metric = inquiry.experiments[0].evaluation, inquiry.metric
    if metric.is_of_windows and evaluation.tasks:
        yield "tasks are scored too, which do not decide; evaluation.tasks=[] leaves them out"
    if not metric.is_of_windows and evaluation.protocols:
        yield "perplexity is taken too, which does not decide; evaluation.protocols=[] leaves it out"


def _settings(inquiry: Inquiry) -> list[str]:
    """Return what all arms were asked with, and the dtype, which another machine would choose otherwise."""
    dropped = ("paths.", "hydra", "tracking", "dtype=")
    kept = [o for o in inquiry.flags.overrides if not o.startswith(dropped)]
    return [*kept, f"dtype={inquiry.experiments[0].dtype}"]


def _print_look(decision: Decision, seen: Collection[tuple[str, str]]) -> None:
    """Print a line per contest seen; on a terminal the interval is drawn, and is seen to shrink."""
    if current_verbosity() == "quiet":
        return
    console, unit = Console(), decision.unit
    for contest in decision.contests:
        if (contest.a, contest.b) not in seen:
            continue  # decided before, or dropped
        look = contest.looks[-1]
        margins = [shown_margin(x, unit) for x in (look.draws_margin, look.items_margin)]
        line = (
            f"{sample(look, decision)}: {contest.a} - {contest.b} {shown_interval(look, unit)}, "
            f"draws {margins[0]}, the rest {margins[1]}: {contest.verdict}"
        )
        if console.is_terminal:
            first = contest.looks[0]
            line = f"{_bar(look, max(abs(first.low), abs(first.high)), decision.margin)} {line}"
        console.print(Text(line), soft_wrap=True, highlight=False)


def _bar(look: LookOfDecision, widest: float, margin: float | None) -> str:
    """Draw an interval on a line of fixed width whose middle is zero."""
    reach = widest or 1.0

    def place(value: float) -> int:
        return round((min(max(value / reach, -1.0), 1.0) + 1) / 2 * (_BAR - 1))

    cells = [" "] * _BAR
    low, high = place(look.low), place(look.high)
    cells[low : high + 1] = "─" * (high + 1 - low)
    for end in () if margin is None else (-margin, margin):
        cells[place(end)] = "┊"
    cells[place(0.0)] = "│"
    cells[place(look.mean)] = "●"
    return "".join(cells)
