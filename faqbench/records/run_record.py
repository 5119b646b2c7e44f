"""The record of one run. Its JSON keys are a contract: more may be added, none may change.

The types of what may stand in it are here too, also of what this package reads of its free parts:
`config` and `extra` hold more than is named here, and older records hold less: a key that is absent is
absent. But a key that is read anywhere has one type, so that nothing behind this module has to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from faqbench.config.identity import identity_of, method_in
from faqbench.config.method import Method
from faqbench.config.section import Slug
from faqbench.foreign import visible

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


Text = Annotated[str, Field(strict=True, max_length=1_000_000)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=-1e100, lt=1e100)]
Amount = Annotated[Number, Field(ge=0.0)]
_Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
_Free = dict[Text, Any]


class _Model(TypedDict, total=False):
    name: Text


class _Quant(TypedDict, total=False):
    name: Text
    scale: Text
    clip: Text
    correct: Text
    round: Text
    refine: Text
    bits: Count
    skip: list[Text]
    overrides: list[_Free]
    search: _Free
    preview: _Free
    mse: _Free
    gptq: _Free
    gptaq: _Free
    qronos: _Free
    correction: _Free
    refinement: _Free


class _Calibration(TypedDict, total=False):
    n_samples: _Positive
    seq_len: _Positive
    n_reference: _Positive


class _Scenario(TypedDict, total=False):
    name: Text
    n_samples: _Positive | None


class _Evaluation(TypedDict, total=False):
    protocols: list[Text]
    tasks: list[Text]
    n_windows: _Positive | None
    n_documents: _Positive | None


class _Tracking(TypedDict, total=False):
    project: Text
    entity: Text | None
    group: Slug | None
    tags: list[Text]


class _Config(TypedDict, total=False):
    model: _Model
    quant: _Quant
    calibration: _Calibration
    scenario: _Scenario
    evaluation: _Evaluation
    tracking: _Tracking
    presearch: _Free
    paths: _Free
    data: _Free
    report: _Free
    cache: _Free
    limit: _Positive | None


class _Costs(TypedDict):
    seconds: Amount
    peak_memory_bytes: Amount
    n_bytes: Amount


class _Plan(TypedDict):
    estimate: _Costs
    actual: _Costs


class _StageUse(TypedDict, total=False):
    entry: Text
    title: Text
    cached: Flag
    seconds: Number
    n_bytes: Count


class _BlockTrace(TypedDict, total=False):
    block: Count
    local_error: Number | None
    relative_error: Number | None
    cosine: Number | None


class _Distance(TypedDict, total=False):
    token_js: Number | None
    activation_shift: dict[Text, Number] | None


class _DrawnCalibration(TypedDict, total=False):
    bias_distance: _Distance | None


class _Checkpoint(TypedDict, total=False):
    fingerprint: Text
    made_by: Text
    seconds: Amount
    peak_memory_bytes: Count
    packages: list[Text]


class _Scored(TypedDict, total=False):
    n_windows: Count | None
    verified: Flag | None


class Extra(TypedDict, total=False):
    """What a record says beside its fields; what is not there did not concern the cell.

    Attributes:
        evaluation: how each protocol and task was measured, by name.
        sources: what the names in the configuration stood for; see `faqbench.sources`.
        calibration: how the calibration set was drawn, and how far it is from the reference set.
        blocks: the errors that each decoder block was left with, where they were traced.
        n_window_cuts: blocks with fewer later blocks than FAQ's window asks for.
        codes_sha256: of the quantized linears; see `quantization.checkpoint.fingerprint_codes`.
        checkpoint: whose weights another tool made: its fingerprint, the tool, and what that took.
        activations: on which grid a linear's inputs were put.
        stage_keys: the entries of the cache that the cell asked for, in that order.
        plan: what a plan said of the cell, what then happened, and by how much it erred.
    """

    evaluation: dict[Text, _Scored]
    sources: dict[Text, _Free]
    n_window_cuts: Count
    codes_sha256: Text
    checkpoint: _Checkpoint
    activations: Any
    calibration: _DrawnCalibration
    plan: _Plan
    stage_keys: list[_StageUse]
    blocks: list[_BlockTrace]


_CONFIG, _EXTRA = TypeAdapter(_Config), TypeAdapter(Extra)


def check_free_parts(config: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Check the keys of a record's `config` and `extra` that anything reads.

    Raises:
        ValueError: with the first key that is not what it should be.
    """
    for name, adapter, part in (("config", _CONFIG, config), ("extra", _EXTRA, extra)):
        try:
            adapter.validate_python(part)
        except ValidationError as error:
            raise ValueError(first_fault(error, name)) from error


def first_fault(error: ValidationError, *place: str) -> str:
    """Return the first thing that a validation found, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, (*place, *first["loc"])))
    value = visible(repr(first["input"]))
    shown = value if len(value) <= 60 else f"{value[:60]}…"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {shown}"
