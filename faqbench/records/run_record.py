"""The record of one run. Its JSON keys are a contract: more may be added, none may change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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

    task: str
    name: str
    value: float | None
    stderr: float | None
    n: int
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One sanity check of a finished cell and how it went."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """What a stage cost in this run; `cached` when its result was already there."""

    seconds: float
    cached: bool


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
        fingerprints: of weights, calibration tokens and each protocol's tokens.
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
    """

    schema_version: int
    run_id: str
    status: Literal["finished", "failed"]
    error: str | None
    config: dict[str, Any]
    environment: dict[str, Any]
    fingerprints: dict[str, str]
    stages: dict[str, StageTiming]
    metrics: tuple[Metric, ...]
    bits_per_weight: float | None
    checkpoint_bytes: int | None
    peak_memory_bytes: int
    gates: tuple[Gate, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped_scales: tuple[str, ...] = ()
    started: str = ""
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RunRecord:
        """Rebuild a record; keys added by later writers of the same schema are kept in `extra`.

        Raises:
            NewerSchemaError: for a record of a later schema.
            ValueError: for another schema version that this code does not know, or a malformed record.
        """
        schema = raw.get("schema_version")
        if schema != SCHEMA_VERSION:
            is_newer = isinstance(schema, int) and schema > SCHEMA_VERSION
            raise (NewerSchemaError if is_newer else ValueError)(
                f"schema_version {schema!r} is not {SCHEMA_VERSION}, the one that this faqbench reads"
            )
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        extra = dict(known.get("extra", {}))
        extra |= {k: v for k, v in raw.items() if k not in cls.__dataclass_fields__}
        try:
            known["stages"] = {k: StageTiming(**v) for k, v in raw["stages"].items()}
            known["metrics"] = tuple(Metric(**m) for m in raw["metrics"])
            known["gates"] = tuple(Gate(**g) for g in raw.get("gates", ()))
            for name in ("warnings", "skipped_scales"):
                known[name] = tuple(raw.get(name, ()))
            return cls(**{**known, "extra": extra})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"malformed record: {error}") from error

    def metric(self, task: str, name: str) -> Metric | None:
        """Return one metric, or None when the run did not measure it."""
        return next((m for m in self.metrics if (m.task, m.name) == (task, name)), None)
