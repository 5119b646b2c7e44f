"""What `faqbench settle` is asked: a claim about methods, its terms, and the cells that can decide it.

    "faq < awq"                         is FAQ's metric below AWQ's?
    "faq, qep-awq < awq"                the same of several, and which is best
    "faq(gamma=0.7, window=2) < faq"    overrides of one arm alone stand in parentheses

All that a configuration tells is checked here, before anything runs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from faqbench.cli.arguments import Keys, between, read_arguments, whole
from faqbench.cli.composing import Command, all_overrides, compose_cells, parse_flags
from faqbench.config import Experiment, UserError, did_you_mean
from faqbench.config.identity import deciding_config, identity
from faqbench.config.section import parse_margin
from faqbench.config.validation import spelled
from faqbench.statistics import fewest_draws

Unit = Literal["ratio", "points", "nats"]
_Draws = Annotated[int, whole(1, 1000)]
_ARM = re.compile(r"([\w.-]+)\s*(?:\((.*)\))?", re.DOTALL)
_UNITS: Mapping[Unit, tuple[str, str, str]] = {
    "ratio": ("percent", "%", "perplexities are compared in percent"),
    "points": ("points", "pt", "accuracies and agreements are compared in points"),
    "nats": ("nats", "nats", "divergences are compared in nats"),
}
_OURS = {
    "quant": "the question names the arms",
    "seed": "its draws are seeds 0, 1, 2, and so on",
    "calibration.seed": "its draws are seeds 0, 1, 2, and so on",
    "rerun": "it goes on with the runs that are there; `faqbench rm RUN` removes one",
}

# What arms may have otherwise: names, and how statistics are taken of one and the same draw.
_NOT_OF_TEXTS = {
    "evaluation.name", "scenario.name", "calibration.seed", "calibration.tokens", "calibration.dtype",
    "calibration.batch_size",
}  # fmt: skip


class Terms(Keys):
    """What an answer takes.

    Attributes:
        metric: what decides: a protocol, PROTOCOL.kl, PROTOCOL.agreement, a task, or mean_acc.
        margin: within which a difference counts as none: 0.5%, 0.5pt or 0.01nats.
        alpha: probability of a wrong verdict, over all contests and looks.
        max_draws: the budget of calibration draws.
        at_once: draws between two looks; as many as the launcher runs at once unless given.
    """

    metric: str | None = None
    margin: str | None = None
    alpha: Annotated[float, between(1e-6, 0.5, "a probability from 0.000001 to 0.5")] = 0.05
    max_draws: _Draws = 40
    at_once: _Draws | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedMetric:
    """What decides.

    Attributes:
        name: as it was asked for.
        task: the protocol or task; empty for the mean over tasks.
        kind: as `report.columns.Column.kind`.
    """

    name: str
    task: str
    kind: Literal["perplexity", "kl", "agreement", "acc", "mean_acc"]

    @property
    def record_name(self) -> str:
        """What records call the number."""
        names = {"kl": "kl_divergence", "agreement": "top1_agreement", "mean_acc": "acc"}
        return names.get(self.kind, self.kind)

    @property
    def unit(self) -> Unit:
        """The unit of differences."""
        units: Mapping[str, Unit] = {"perplexity": "ratio", "kl": "nats"}
        return units.get(self.kind, "points")

    @property
    def higher_is_better(self) -> bool:
        """Which way is good."""
        return self.unit == "points"

    @property
    def is_of_windows(self) -> bool:
        """Whether it is a mean over windows of text rather than over documents."""
        return self.kind in ("perplexity", "kl", "agreement")

    @property
    def items(self) -> str:
        """What it is measured on, in the plural."""
        return "windows" if self.is_of_windows else "documents"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method of the question: its name there, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """A question with its terms.

    Attributes:
        text: the question.
        claim: `<` or `>`.
        arms: the challengers, then the reference.
        experiments: of each arm, its first draw.
        metric: what decides.
        margin: in the unit of differences; None is none.
        alpha: over all contests.
        max_draws: the budget.
        at_once: draws between two looks; None follows the launcher.
        flags: the command line without the question's own words.
    """

    text: str
    claim: str
    arms: tuple[Arm, ...]
    experiments: tuple[Experiment, ...]
    metric: JudgedMetric
    margin: float | None
    alpha: float
    max_draws: int
    at_once: int | None
    flags: argparse.Namespace

    @property
    def contest_alpha(self) -> float:
        """The level of each contest, so that all of them together keep alpha."""
        return self.alpha / math.comb(len(self.arms), 2)

    @property
    def overrides(self) -> list[str]:
        """The command line's own overrides."""
        return all_overrides(self.flags)

    def draws(self, arm: int, seeds: range, n_items: int | None = None) -> Command:
        """Compose some of an arm's draws.

        Args:
            arm: its index.
            seeds: of the draws.
            n_items: windows or documents; None leaves what the command line says.
        """
        size = [] if n_items is None else [f"evaluation.n_{self.metric.items}={n_items}"]
        return _compose(self.flags, [*self.arms[arm].overrides, *size], seeds)


def read_inquiry(arguments: Sequence[str]) -> Inquiry:
    """Read and check a command line of `settle`.

    Raises:
        UserError: for whatever the question, its terms or the configuration have wrong.
    """
    is_term = [word.partition("=")[0] in Terms.model_fields and "=" in word for word in arguments]
    typed = [word for word, is_one in zip(arguments, is_term, strict=True) if is_one]
    rest = [word for word, is_one in zip(arguments, is_term, strict=True) if not is_one]
    questions = [word for word in rest if _is_question(word)]
    if len(questions) != 1:
        raise UserError(
            'settle takes one question, as in "faq < awq": challengers, < or >, and whom they challenge; '
            f"{f'there are {len(questions)}' if questions else 'there is none'}."
        )
    _, terms = read_arguments("settle", typed, Terms)
    rest.remove(questions[0])
    claim, arms = _parse(questions[0])
    flags = parse_flags(rest)
    _check_overrides(flags.overrides)
    firsts = tuple(_compose(flags, arm.overrides, range(1)).experiments[0] for arm in arms)
    _check_different(arms, firsts)
    _check_pairs(arms, firsts)
    metric = _metric(terms.metric, firsts[0])
    inquiry = Inquiry(
        text=" ".join(questions[0].split()),
        claim=claim,
        arms=arms,
        experiments=firsts,
        metric=metric,
        margin=None if terms.margin is None else _margin(terms.margin, metric),
        alpha=terms.alpha,
        max_draws=terms.max_draws,
        at_once=terms.at_once,
        flags=flags,
    )
    _check_budget(inquiry)
    _check_fidelity(inquiry)
    return inquiry


def _is_question(word: str) -> bool:
    """Say whether a word is the question rather than an override, whose value may hold `<` too."""
    before = re.split("[<>]", word, maxsplit=1)[0]
    return before != word and "=" not in re.sub(r"\(.*?\)", "", before)


def _parse(text: str) -> tuple[str, tuple[Arm, ...]]:
    sides = re.split("([<>])", text)
    if len(sides) != 3:
        raise UserError(f"'{text}' is no question: it has one < or >, as in \"faq < awq\".")
    challengers, claim, reference = _split(sides[0]), sides[1], _split(sides[2])
    if len(reference) != 1:
        raise UserError(f"'{text}' challenges {len(reference)} arms; right of {claim} stands one.")
    arms = tuple(_arm(word) for word in (*challengers, *reference))
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{twice[0]} and {twice[0]} are the same configuration; there is no question.")
    return claim, arms


def _arm(word: str) -> Arm:
    match = _ARM.fullmatch(word)
    if match is None:
        raise UserError(
            f"'{word}' is no arm: it is a choice of quant, with overrides in parentheses, as in "
            "faq(gamma=0.7)."
        )
    options = _split(match[2]) if match[2] is not None else []
    for option in options:
        if "=" not in option:
            raise UserError(f"'{option}' of {match[1]} is no key=value override.")
    _check_overrides(options)
    name = f"{match[1]}({', '.join(options)})" if options else match[1]
    return Arm(name=name, overrides=(f"quant={match[1]}", *options))


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    words, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            words.append("")
        else:
            words[-1] += character
    return [word.strip() for word in words]


def _check_overrides(overrides: Sequence[str]) -> None:
    for line in overrides:
        key = line.lstrip("+~").partition("=")[0]
        if key in _OURS:
            raise UserError(f"settle takes no {key}=: {_OURS[key]}.")


def _compose(flags: argparse.Namespace, overrides: Sequence[str], draws: range) -> Command:
    """Compose the draws of one arm, which are all that the command line may sweep over."""
    arm_flags = copy.copy(flags)
    seeds = ",".join(map(str, draws))
    arm_flags.overrides, arm_flags.multirun = [*flags.overrides, *overrides, f"seed={seeds}"], True
    request = compose_cells(arm_flags)
    if request.kind == "search" or len(request.cells) != len(draws):
        raise UserError(
            "settle asks about one setting; a key with several values, or an experiment that sweeps "
            "(hydra.sweeper.params=null leaves its sweep out), gives several: ask for one at a time."
        )
    return request


def _check_different(arms: Sequence[Arm], experiments: Sequence[Experiment]) -> None:
    arm_of: dict[str, str] = {}
    for arm, experiment in zip(arms, experiments, strict=True):
        key = repr(identity(experiment))
        if key in arm_of:
            raise UserError(
                f"{arm_of[key]} and {arm.name} are the same configuration; there is no question."
            )
        arm_of[key] = arm.name


def _check_pairs(arms: Sequence[Arm], experiments: Sequence[Experiment]) -> None:
    """Refuse arms that no draw could pair: evaluated or calibrated on other texts, or kept elsewhere."""
    told = [_texts_of(experiment) for experiment in experiments]
    for a, b in itertools.combinations(range(len(arms)), 2):
        for key in sorted(told[a].keys() & told[b].keys()):
            value, other = told[a][key], told[b][key]
            if value != other:
                raise UserError(
                    f"{arms[a].name} and {arms[b].name} cannot be paired: {key} is {value} in one and "
                    f"{other} in the other; set it outside of the parentheses, for all arms."
                )


def _texts_of(experiment: Experiment) -> dict[str, str]:
    """Return the keys by which draws are found and paired, and their values as text."""
    deciding = deciding_config(experiment.model_dump(mode="json"))
    told = {"paths.runs": str(experiment.paths.runs)}
    for section in ("evaluation", "calibration", "scenario"):
        if section == "evaluation" or experiment.needs_calibration:
            keys = {f"{section}.{k}": spelled(v) for k, v in deciding[section].items()}
            told |= {k: v for k, v in keys.items() if k not in _NOT_OF_TEXTS}
    return told


def _metric(name: str | None, experiment: Experiment) -> JudgedMetric:
    metrics = _metrics_of(experiment)
    if not metrics:
        raise UserError(
            f"evaluation={experiment.evaluation.name} measures nothing, so nothing can be settled; "
            "choose another, such as evaluation=quick."
        )
    if name is None:
        return next(iter(metrics.values()))
    if name not in metrics:
        raise UserError(
            f"metric={name} is not made by evaluation={experiment.evaluation.name}, which makes "
            f"{', '.join(metrics)}.{did_you_mean(name, metrics)}"
        )
    if not metrics[name].is_of_windows and not experiment.evaluation.keep_items:
        raise UserError(
            f"metric={name} is compared item by item, and evaluation.keep_items=false keeps none."
        )
    return metrics[name]


def _metrics_of(experiment: Experiment) -> dict[str, JudgedMetric]:
    evaluation = experiment.evaluation
    metrics = [JudgedMetric(name=p, task=p, kind="perplexity") for p in evaluation.protocols]
    for protocol in evaluation.protocols if evaluation.kl else ():
        kl, agreement = f"{protocol}.kl", f"{protocol}.agreement"
        metrics.append(JudgedMetric(name=kl, task=protocol, kind="kl"))
        metrics.append(JudgedMetric(name=agreement, task=protocol, kind="agreement"))
    metrics += [JudgedMetric(name=t, task=t, kind="acc") for t in evaluation.tasks]
    if len(evaluation.tasks) > 1:
        metrics.append(JudgedMetric(name="mean_acc", task="", kind="mean_acc"))
    return {metric.name: metric for metric in metrics}


def _margin(text: str, metric: JudgedMetric) -> float:
    try:
        margin = parse_margin(text)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    name, unit, rule = _UNITS[metric.unit]
    value: float | None = getattr(margin, name)
    if value is None:
        raise UserError(f"margin={text} says nothing of {metric.name}: {rule}, as in margin=1{unit}.")
    return {"ratio": math.log1p(value / 100), "points": value / 100, "nats": value}[metric.unit]


def _check_budget(inquiry: Inquiry) -> None:
    fewest = fewest_draws(inquiry.contest_alpha)
    is_calibrated = any(e.needs_calibration for e in inquiry.experiments)
    if is_calibrated and inquiry.max_draws < fewest:
        n = math.comb(len(inquiry.arms), 2)
        over = "" if n == 1 else f" over {n} contests"
        raise UserError(
            f"max_draws={inquiry.max_draws} decides nothing: at alpha={inquiry.alpha:g}{over} no interval "
            f"ends before draw {fewest}."
        )


def _check_fidelity(inquiry: Inquiry) -> None:
    """Refuse to compare full precision by how far arms are from it."""
    baselines = [
        arm.name
        for arm, experiment in zip(inquiry.arms, inquiry.experiments, strict=True)
        if not experiment.quantizes
    ]
    if baselines and inquiry.metric.kind in ("kl", "agreement"):
        raise UserError(
            f"metric={inquiry.metric.name} says how far an arm is from full precision, and {baselines[0]} "
            "is full precision."
        )
