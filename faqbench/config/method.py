"""The stages of a method and the values that each can take: one table, and all that follows from it.

A method is a composition of stages, `rotate` x `scale` x `clip` x `correct` x `round`, or of `rotate`,
`round=nearest` and `refine`, where a block's scales, ranges and offsets are learned as a whole; and a value
of a stage is one row here; beside them stands what is done to activations. The row says what the value
reads of the model's activations, which options of `quant` it owns, and the function that does its work.
Nobody else compares a stage's value with a name: whether a method needs calibration, which statistics are
gathered, which options are part of an identity, what a report calls calibrated or a baseline, and what a
plan expects, are asked of the `Method` that `method_of` makes of a `quant` section, of an experiment or of
a record alike.

To add a value: write its function of tensors in a file of `faqbench/quantization/`, add a row to the
stage's values below, and a preset that uses it to `conf/quant/`. What a function is given:

    rotate    none: `models.rotation` makes another view of the model that was loaded
    scale     (current, later, role, quant) -> importance    mean|x| [in] of this block, and the
              `quantization.preview.Later` of what comes after it; or,
              for a value that reads extremes, (largest, weights, quant) -> scale [in]    of max|x| [in]
    clip      (weight, gram, grid, input_scale, quant) -> limit [out, n_groups]; gram None unless read
    correct   a class as `quantization.correct.CorrectionAccumulator`
    round     (weight, known, grid, quant, limit) -> `quantization.grid.Rounded`; the weight is scaled,
              `known` a `quantization.grid.RoundInput`
    refine    () -> `quantization.refine.Recipe`    what is learned, and by which loss

An option is part of an identity while a value that owns it is active and it is not at its neutral value.
`ALWAYS` stands for no neutral value. An option that is added later gets one, so that the identities of
what was run before stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, Final


class Reads(Enum):
    """What a stage reads of the activations."""

    MEANS = "mean|x| of a linear's input, of the full precision pass"
    LATER_MEANS = "the same of the blocks or linears that follow"
    EXTREMES = "the least and the largest of each channel of a linear's input, of the full precision pass"
    GRAM = "X'X / n of a linear's input, of the full precision pass or, corrected, of the quantized stream"
    HESSIAN = "X'X / n of a linear's input on the quantized stream"
    BOTH_STREAMS = "a linear's input in full precision and on the quantized stream, token by token"
    RESIDUALS = "the residual stream that a linear adds to, in full precision and on the quantized stream"
    BLOCKS = "what enters and leaves a block in full precision and on the quantized stream"
    TOKENS = "the calibration tokens themselves, which another tool is handed"


class _Always(Enum):
    ALWAYS = "has no neutral value"


ALWAYS: Final = _Always.ALWAYS
Options = Mapping[str, object]  # a dotted path under `quant`, and its neutral value


@dataclass(frozen=True, kw_only=True, eq=False)
class StageValue:
    """One value of a stage.

    Attributes:
        name: as the configuration spells it.
        label: the word that tables and figures name a method by; None for a value that gives none.
        is_idle: whether the stage then leaves everything as it was.
        reads: what it needs of the activations.
        options: that it owns.
        call: `module:function`, what does the work; None for an idle value.
        spares_attention: a clip's: whether it leaves the rows of q and k alone.
        is_foreign: a rounding's: whether another tool does the work.
        revision: raised when the same options come to give other weights; part of cache keys unless 0.
    """

    name: str
    label: str | None = None
    is_idle: bool = False
    reads: frozenset[Reads] = frozenset()
    options: Options = field(default_factory=dict)
    call: str | None = None
    spares_attention: bool = False
    is_foreign: bool = False
    revision: int = 0


@dataclass(frozen=True, kw_only=True)
class MethodStage:
    """One stage, and its values in the order in which readers expect them.

    Attributes:
        name: its field of `quant`.
        values: by name.
        is_always_named: whether an idle value is part of an identity too. So it is for the first four
            stages; a later one is named where it does something.
    """

    name: str
    values: Mapping[str, StageValue]
    is_always_named: bool = False


def _stage(name: str, *values: StageValue, is_always_named: bool = False) -> MethodStage:
    return MethodStage(name=name, values={v.name: v for v in values}, is_always_named=is_always_named)


def _always(section: str, *leaves: str) -> dict[str, object]:
    return {f"{section}.{leaf}": ALWAYS for leaf in leaves}


_SEARCH = _always("search", "n_grid", "loss", "gqa_scale", "clip_steps", "clip_max_shrink")
_PREVIEW = _always("preview", "window", "gamma", "roles", "source", "weights", "norm", "fuse", "alpha") | {
    "preview.stream": "full"
}
_GPTQ = _always("gptq", "damping", "act_order", "block_size")
_MSE = _always("mse", "p", "steps", "max_shrink")
_CORRECTION = _always("correction", "strength", "damping", "roles")

_REFINEMENT = {**_always("refinement", "steps", "windows", "batch"), "refinement.patience": None}
_REFINEMENT |= {"refinement.seed": 0, "refinement.adapt_on": None}
_LEARNT_RANGES = {**_REFINEMENT, **_always("refinement", "start", "scale_rate", "clip_rate")}
_LEARNT_RANGES |= {"smoothing.alpha": 0.5}

_IDLE = StageValue(name="none", is_idle=True)
_UNKNOWN = StageValue(name="unknown")

_ROTATION = _always("rotation", "places", "seed")

ROTATE = _stage(
    "rotate",
    _IDLE,
    StageValue(name="hadamard", label="Hadamard", options=_ROTATION),
    StageValue(name="random", label="random rotation", options=_ROTATION),
)

SCALE = _stage(
    "scale",
    _IDLE,
    StageValue(
        name="awq",
        label="AWQ",
        reads=frozenset({Reads.MEANS, Reads.GRAM}),
        options=_SEARCH,
        call="faqbench.quantization.preview:current_importance",
    ),
    StageValue(
        name="faq",
        label="FAQ",
        reads=frozenset({Reads.MEANS, Reads.LATER_MEANS, Reads.GRAM}),
        options={**_SEARCH, **_PREVIEW},
        call="faqbench.quantization.preview:blended_importance",
    ),
    StageValue(
        name="smoothquant",
        label="SmoothQuant",
        reads=frozenset({Reads.EXTREMES}),
        options=_always("smoothing", "alpha"),
        call="faqbench.quantization.scale:smoothquant_scale",
    ),
    StageValue(
        name="lae",
        label="LAE",
        reads=frozenset({Reads.EXTREMES}),
        call="faqbench.quantization.scale:lae_scale",
    ),
    is_always_named=True,
)

CLIP = _stage(
    "clip",
    _IDLE,
    StageValue(
        name="search",
        reads=frozenset({Reads.GRAM}),
        options=_SEARCH,
        call="faqbench.quantization.clip:searched_limit",
        spares_attention=True,
    ),
    StageValue(
        name="mse",
        reads=frozenset({Reads.HESSIAN}),
        options=_MSE,
        call="faqbench.quantization.clip:closest_limit",
    ),
    StageValue(name="mse_unweighted", options=_MSE, call="faqbench.quantization.clip:closest_limit"),
    is_always_named=True,
)

ROUND = _stage(
    "round",
    _IDLE,
    StageValue(name="nearest", label="RTN", call="faqbench.quantization.grid:round_nearest"),
    StageValue(
        name="gptq",
        label="GPTQ",
        reads=frozenset({Reads.HESSIAN}),
        options=_GPTQ,
        call="faqbench.quantization.gptq:round_gptq",
    ),
    StageValue(
        name="gptaq",
        label="GPTAQ",
        reads=frozenset({Reads.HESSIAN, Reads.BOTH_STREAMS}),
        options={**_GPTQ, "gptaq.alpha": ALWAYS, "gptaq.beta": 0.0},
        call="faqbench.quantization.gptq:round_gptaq",
    ),
    StageValue(
        name="foem",
        label="FOEM",
        reads=frozenset({Reads.HESSIAN}),
        options={**_GPTQ, "gptaq.beta": ALWAYS},
        call="faqbench.quantization.gptq:round_foem",
    ),
    StageValue(
        name="rescomp",
        label="ResComp",
        reads=frozenset({Reads.HESSIAN, Reads.BOTH_STREAMS}),
        options={**_GPTQ, "gptaq.alpha": ALWAYS, "gptaq.original": ALWAYS, "gptaq.beta": 0.0},
        call="faqbench.quantization.gptq:round_rescomp",
    ),
    StageValue(
        name="qronos",
        label="Qronos",
        reads=frozenset({Reads.HESSIAN, Reads.BOTH_STREAMS}),
        options=_always("qronos", "alpha") | _always("gptq", "act_order", "block_size"),
        call="faqbench.quantization.qronos:round_qronos",
    ),
    # No function of tensors: another tool has made the weights, or makes them; see `pipeline.foreign`.
    StageValue(
        name="checkpoint", options=_always("checkpoint", "path", "hub_id", "revision"), is_foreign=True
    ),
    StageValue(
        name="external",
        reads=frozenset({Reads.TOKENS}),
        options=_always("external", "driver", "requirements", "options"),
        is_foreign=True,
    ),
    is_always_named=True,
)

CORRECT = _stage(
    "correct",
    _IDLE,
    StageValue(
        name="qep",
        label="QEP",
        reads=frozenset({Reads.BOTH_STREAMS}),
        options=_CORRECTION,
        call="faqbench.quantization.correct:CorrectionAccumulator",
    ),
    StageValue(
        name="loaq",
        label="LoaQ",
        reads=frozenset({Reads.BOTH_STREAMS, Reads.RESIDUALS}),
        options={**_CORRECTION, **_always("correction", "variant", "residual_strength")},
        call="faqbench.quantization.correct:CorrectionAccumulator",
    ),
    is_always_named=True,
)

REFINE = _stage(
    "refine",
    _IDLE,
    StageValue(
        name="omniquant",
        label="OmniQuant",
        reads=frozenset({Reads.BLOCKS}),
        options=_LEARNT_RANGES,
        call="faqbench.quantization.refine:omniquant",
    ),
    StageValue(
        name="lrquant",
        label="LRQuant",
        reads=frozenset({Reads.BLOCKS}),
        options=_LEARNT_RANGES,
        call="faqbench.quantization.refine:lrquant",
    ),
    StageValue(
        name="lrquant_plus",
        label="LRQuant+",
        reads=frozenset({Reads.BLOCKS}),
        options=_LEARNT_RANGES,
        call="faqbench.quantization.refine:lrquant_plus",
    ),
    StageValue(
        name="signround",
        label="SignRound",
        reads=frozenset({Reads.BLOCKS}),
        options=_REFINEMENT | {"refinement.offset_rate": None},
        call="faqbench.quantization.refine:signround",
        revision=1,
    ),
)

# In the order in which readers expect methods: scales, roundings, corrections, what is learned, rotations.
STAGES: Mapping[str, MethodStage] = {s.name: s for s in (SCALE, CLIP, ROUND, CORRECT, REFINE, ROTATE)}

# What is done to the inputs of linears, as the section `quant.activations` says: no stage, since it changes
# no weight.
_ACTIVATIONS: Options = {
    "activations.bits": None,
    "activations.symmetric": True,
    "activations.granularity": "token",
    "activations.dynamic": True,
    "activations.clip_ratio": 1.0,
    "activations.targets": ["qkv", "o", "gate_up", "down"],
    "activations.kv_bits": None,
    "activations.bmm": False,
    "activations.seen_by_rounding": False,
}
_DYNAMIC = StageValue(name="dynamic", options=_ACTIVATIONS)
_STATIC = StageValue(name="static", reads=frozenset({Reads.EXTREMES}), options=_ACTIVATIONS)

# The words that presets' names are made of, and how tables write them, in the order of the stages.
LABELS: Mapping[str, str] = (
    {"fp": "full precision", "rtn": "RTN"}
    | {
        value.name: value.label
        for stage in STAGES.values()
        for value in stage.values.values()
        if value.label is not None and value.label != "RTN"
    }
    # What a preset's name says of its options.
    | {"strong": "strong", "onecompression": "OneCompression", "plus": "plus"}
    | {"llmcompressor": "llm-compressor", "gptqmodel": "GPTQModel", "autoround": "AutoRound"}
    | {"w8a8": "W8A8", "w4a8": "W4A8", "w4a4": "W4A4", "quarot": "QuaRot"}
)

# Options of the grid itself, which every method that rounds has.
_GRID: Options = {
    "bits": ALWAYS,
    "group_size": ALWAYS,
    "symmetric": ALWAYS,
    "symmetric_grid": "signed",
    "scale_dtype": None,
    "skip": ALWAYS,
    "overrides": ALWAYS,
}
OWNED = (
    frozenset(_GRID)
    | {path for stage in STAGES.values() for value in stage.values.values() for path in value.options}
    | frozenset(_ACTIVATIONS)
)
# What decides no weight: the preset's name, the preset here that is its like, and how much of the result is
# traced for the reader.
UNDECIDING: Final = frozenset({"name", "trace_windows", "like"})


@dataclass(frozen=True, kw_only=True)
class Method:
    """The values of all stages of one method.

    Attributes:
        values: by stage, in the order of `STAGES`.
        activations: what is done to the inputs of linears: idle, dynamic or static.
    """

    values: Mapping[str, StageValue]
    activations: StageValue = _IDLE

    def __getitem__(self, stage: str) -> StageValue:
        """Return the value of a stage."""
        return self.values[stage]

    @property
    def quantizes(self) -> bool:
        """Whether weights are put on a grid; false for the full precision baseline."""
        return not self["round"].is_idle

    @property
    def is_foreign(self) -> bool:
        """Whether another tool makes the quantized weights."""
        return self["round"].is_foreign

    @cached_property
    def reads(self) -> frozenset[Reads]:
        """What all stages together need of the activations; nothing where nothing is quantized."""
        if not self.quantizes:
            return frozenset()
        return frozenset().union(*(value.reads for value in self._all))

    @property
    def is_calibrated(self) -> bool:
        """Whether any stage reads activations; false for the baseline and for plain rounding."""
        return bool(self.reads)

    @property
    def revisions(self) -> dict[str, int]:
        """The revisions of the stages' values, by stage, where they are not 0."""
        return {stage: value.revision for stage, value in self.values.items() if value.revision}

    @property
    def is_plain_rounding(self) -> bool:
        """Whether it is RTN, in any basis and with any activations: plain rounding, all else idle."""
        return self.rounds_to_nearest and all(
            value.is_idle for stage, value in self.values.items() if stage not in ("rotate", "round")
        )

    @property
    def rounds_to_nearest(self) -> bool:
        """Whether each weight goes to the nearest code by itself, whatever else is known."""
        return self["round"] is ROUND.values["nearest"]

    def owns(self, section: str) -> bool:
        """Say whether a section of options under `quant` decides anything of this method."""
        return any(path.startswith(f"{section}.") for path in self._options)

    def identity(self, quant: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a `quant` section that decides the quantized weights.

        Args:
            quant: the section as plain data, whose stages are this method's. An option that no row of the
                table knows, as of a record by a newer version, counts always.
        """
        if not self.quantizes:
            return {"round": self["round"].name}
        result: dict[str, Any] = {
            stage: value.name
            for stage, value in self.values.items()
            if STAGES[stage].is_always_named or not value.is_idle
        }
        active = self._options
        for section, leaf, value in _leaves(quant):
            path = f"{section}.{leaf}" if leaf else section
            if value == active[path] if path in active else path in OWNED:
                continue
            if leaf:
                result.setdefault(section, {})[leaf] = value
            else:
                result[section] = value
        return result

    @cached_property
    def _options(self) -> dict[str, object]:
        owned = dict(_GRID) if self.quantizes else {}
        for value in self._all if self.quantizes else ():
            owned |= value.options
        return owned

    @property
    def _all(self) -> tuple[StageValue, ...]:
        return (*self.values.values(), self.activations)


def method_of(quant: object) -> Method:
    """Return the method of a `quant` section.

    Args:
        quant: a `QuantSection`, or a mapping as records hold it. A stage that it lacks is idle, but for a
            rounding, of which nothing is then known; a value that the table does not know, as of a newer
            version, counts as one that reads activations.
    """
    raw = quant if isinstance(quant, Mapping) else vars(quant)
    values = tuple(_value(stage, raw.get(name)) for name, stage in STAGES.items())
    return _method(values, _activations(raw.get("activations")))


@lru_cache(maxsize=1024)  # a report asks for the methods of thousands of records
def _method(values: tuple[StageValue, ...], activations: StageValue) -> Method:
    return Method(values=dict(zip(STAGES, values, strict=True)), activations=activations)


def _value(stage: MethodStage, name: object) -> StageValue:
    if name is None:
        return _UNKNOWN if stage is ROUND else _IDLE
    value = stage.values.get(str(name))
    return value or StageValue(name=str(name), reads=frozenset({Reads.MEANS}))


def _activations(section: object) -> StageValue:
    raw: Any = section if isinstance(section, Mapping) else {} if section is None else vars(section)
    if raw.get("bits") is None:
        return _IDLE if raw.get("kv_bits") is None else _DYNAMIC
    return _DYNAMIC if raw.get("dynamic", True) else _STATIC


def _leaves(quant: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (section, option, value) of all options, and (option, "", value) of those in no section."""
    for key, value in quant.items():
        if key in STAGES or key in UNDECIDING:
            continue
        if isinstance(value, Mapping):
            yield from ((key, leaf, inner) for leaf, inner in value.items())
        else:
            yield key, "", value
