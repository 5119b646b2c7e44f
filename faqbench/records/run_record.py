"""The record of one run. Its JSON keys are a contract: more may be added, none may change."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from faqbench.config.identity import identity_of, method_in
from faqbench.config.method import Method
from faqbench.records.schema import Amount, Count, Flag, Number, Text, check_free_parts, first_fault

SCHEMA_VERSION = 1


class NewerSchemaError(ValueError):
    """A record that a later faqbench wrote, which this one must neither read nor replace."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of one task or protocol.

    Attributes:
        task: a protocol (`heldout-wiki-512`) or a task with its split (`arc_easy_validation`).
        name: `perplexity`, `acc`, `acc_norm`, ...
        value: the number itself; NaN is stored as null.
        stderr: its standard error over items or windows; null where none is defined.
        n: how many items (tasks) or scored tokens (protocols) it was taken over.
        unit: `ratio` for accuracies, `perplexity` for perplexities, `nats` for log-likelihoods.
        higher_is_better: which way is good.
    """

    task: Text
    name: Text
    value: Number | None
    stderr: Amount | None
    n: Count
    unit: Text
    higher_is_better: Flag


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One sanity check of a finished cell and how it went."""

    name: Text
    passed: Flag
    detail: Text


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """What a stage cost in this run; `cached` when its result was already there."""

    seconds: Amount
    cached: Flag


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything one cell leaves behind, arrays excepted.

    Attributes:
        schema_version: the version of these keys.
        run_id: the name of the run's folder.
        status: `finished`, or `failed` with `error` set.
        error: one sentence, or the last lines of a traceback; null when finished.
        config: the resolved experiment, nested as in `conf/`.
        environment: versions, git commit, hardware, thread count.
        fingerprints: of weights, model (weights, configuration, attention), tokenizer, calibration tokens,
            and of each protocol's tokens and each task's requests.
        stages: seconds and cache hit per stage.
        metrics: all metrics of all tasks.
        bits_per_weight: of the quantized linears, scales and zero points counted; null for baselines.
        checkpoint_bytes: size of the quantized weights, scales and zero points; null for baselines.
        peak_memory_bytes: the largest resident set of the process during the run.
        gates: sanity checks.
        warnings: sentences that a reader of the numbers must see.
        skipped_scales: scale mappings that the architecture rules out, with the reason.
        started: ISO 8601, UTC.
        seconds: wall-clock time of the whole run.
        extra: what concerns some cells only, with the keys of `schema.Extra`, and what later writers add.
    """

    schema_version: int
    run_id: Text
    status: Literal["finished", "failed"]
    error: Text | None
    config: dict[Text, Any]
    environment: dict[Text, Any]
    fingerprints: dict[Text, Text]
    stages: dict[Text, StageTiming]
    metrics: tuple[Metric, ...]
    bits_per_weight: Amount | None
    checkpoint_bytes: Count | None
    peak_memory_bytes: Count
    gates: tuple[Gate, ...] = ()
    warnings: tuple[Text, ...] = ()
    skipped_scales: tuple[Text, ...] = ()
    started: Text = ""
    seconds: Amount = 0.0
    extra: dict[Text, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> RunRecord:
        """Rebuild a record; keys added by later writers of the same schema are kept in `extra`.

        Raises:
            NewerSchemaError: for a record of a later schema.
            ValueError: for anything that is no record, with the first key that is not what it should be.
        """
        if not isinstance(raw, dict):
            raise ValueError("malformed record: it is no mapping")
        _check_schema(raw.get("schema_version"))
        fields = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        later = {k: v for k, v in raw.items() if k not in cls.__dataclass_fields__}
        if later and isinstance(extra := fields.get("extra", {}), dict):
            fields["extra"] = extra | later
        try:
            record = _adapter().validate_python(fields)
            check_free_parts(record.config, record.extra)
        except ValidationError as error:
            raise ValueError(f"malformed record: {first_fault(error)}") from error
        except ValueError as error:
            raise ValueError(f"malformed record: {error}") from error
        return record.checked()

    def checked(self) -> RunRecord:
        """Return the record, whose parts are each what they should be, once they are known to go together.

        Raises:
            ValueError: with the reason why they do not.
        """
        _check_metrics(self.metrics)
        try:
            _ = self.identity
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"malformed record: config is that of no experiment: {reason}") from error
        return self

    @cached_property
    def method(self) -> Method:
        """The method that the configuration composes."""
        return method_in(self.config)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the result, as `config.identity` defines it: equal results have equal ones."""
        return identity_of(self.config)

    @property
    def error_line(self) -> str:
        """The last line of the error, which names what happened; `failed` where nothing was kept."""
        return (self.error or "").strip().rpartition("\n")[2] or "failed"

    def metric(self, task: str, name: str) -> Metric | None:
        """Return one metric, or None when the run did not measure it."""
        return self._metrics_by_name.get((task, name))

    @cached_property
    def _metrics_by_name(self) -> dict[tuple[str, str], Metric]:
        return {(m.task, m.name): m for m in self.metrics}


@cache
def _adapter() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def _check_schema(schema: object) -> None:
    if type(schema) is int and schema == SCHEMA_VERSION:
        return
    is_newer = type(schema) is int and schema > SCHEMA_VERSION
    raise (NewerSchemaError if is_newer else ValueError)(
        f"schema_version {schema!r:.40} is not {SCHEMA_VERSION}, the one that this faqbench reads"
    )


def _check_metrics(metrics: tuple[Metric, ...]) -> None:
    """Refuse what would be counted twice, and perplexities that have no logarithm."""
    names = [(m.task, m.name) for m in metrics]
    if len(set(names)) < len(names):
        task, name = Counter(names).most_common(1)[0][0]
        raise ValueError(f"malformed record: it has {task} {name} twice")
    for m in metrics:
        if m.unit == "perplexity" and m.value is not None and m.value <= 0:
            raise ValueError(f"malformed record: {m.task} {m.name} is {m.value:.4g}, no perplexity")
