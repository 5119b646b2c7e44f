"""What may stand in a record: the types of its fields, and of what this package reads of its free parts.

`config` and `extra` hold more than is named here, and older records hold less: a key that is absent is
absent. But a key that is read anywhere has one type, so that nothing behind this module has to ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from faqbench.config.section import Slug
from faqbench.foreign import visible

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
