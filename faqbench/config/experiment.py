"""The frozen, typed experiment that everything below the command line works from.

Fields mirror `conf/` one to one and carry no defaults: a field that is missing there is an error, and
so is a key that is not listed here. Comments on each field's meaning are in `conf/config.yaml` and the
group files, where users read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from faqbench.config.calibration import CalibrationSection, ScenarioSection, mixture_of
from faqbench.config.method import STAGES, Method, method_of
from faqbench.config.section import DType, Fraction, Positive, Section, Slug, UserError, parse_margin


class GridSection(Section):
    """One entry of `presearch.grids`: every combination of these values is a candidate."""

    window: tuple[Annotated[int, Field(ge=0)], ...]
    gamma: tuple[Fraction, ...]
    roles: tuple[Literal["all", "residual"], ...]
    source: tuple[Literal["same_role", "next_linear", "consumers"], ...]
    stream: tuple[Literal["full", "quantized"], ...]
    weights: tuple[Literal["uniform", "linear", "geometric", "error"], ...]
    norm: tuple[Literal["none", "mean", "max"], ...]
    fuse: tuple[Literal["convex", "geometric", "max"], ...]


class PresearchSection(Section):
    """`presearch`: the candidates, the draws that each round adds, and the selection text."""

    name: Slug
    grids: tuple[GridSection, ...]
    rounds: tuple[Positive, ...]
    keep: Annotated[float, Field(gt=0.0, lt=1.0)]
    domains: tuple[str, ...] | None
    n_windows: Annotated[int, Field(ge=2)]


def check_presearch(presearch: PresearchSection) -> None:
    """Refuse rounds that are no rising numbers of draws, and grids without a candidate.

    Raises:
        UserError: one sentence with the key and its value.
    """
    rounds = list(presearch.rounds)
    if not rounds or rounds != sorted(set(rounds)):
        raise UserError(
            f"presearch.rounds={rounds} must be rising numbers of calibration draws, e.g. [1, 2, 4]."
        )
    if presearch.domains == ():
        raise UserError("presearch.domains=[] names no text; null takes the calibration's own domain.")
    for grid in presearch.grids:
        empty = [name for name, values in grid if not values]
        if empty:
            raise UserError(f"presearch.grids has no value for {empty[0]}, hence no candidate.")
    if not presearch.grids:
        raise UserError("presearch.grids=[] has no candidate.")


RoleName = Literal["qkv", "o", "gate_up", "down"]
# A number for all roles, or one for each. The tags keep errors to the form that the user wrote.
PerRole = Annotated[
    Annotated[Fraction, Tag("number")]
    | Annotated[dict[RoleName, Fraction], Tag("per role")]
    | Annotated[Literal["search"], Tag("word")],
    Discriminator(
        lambda value: (
            "per role" if isinstance(value, dict) else "word" if isinstance(value, str) else "number"
        )
    ),
]

Rate = Annotated[float, Field(gt=0.0, le=1.0)]


def _value_of(stage: str) -> AfterValidator:
    """Check a stage's value against the table of methods."""

    def check(value: str) -> str:
        names = list(STAGES[stage].values)
        if value not in names:
            expected = " or ".join([", ".join(map(repr, names[:-1])), repr(names[-1])])
            raise PydanticCustomError("literal_error", "{expected}", {"expected": expected})
        return value

    return AfterValidator(check)


class ModelSection(Section):
    """`model`: where the weights come from; the architecture follows from their own config."""

    name: Slug
    source: Literal["packaged", "hub", "path", "random"]
    asset: str | None
    hub_id: str | None
    revision: str | None
    path: str | None
    random: dict[str, int | float | str | bool | tuple[int | str, ...] | None] | None
    tokenizer: str | None
    trust_remote_code: bool
    add_bos: bool
    group_size: int
    notes: str | None


class SearchSection(Section):
    """`quant.search`: the grids of the scale and clip searches."""

    n_grid: Annotated[int, Field(ge=0, le=200)]
    loss: Literal["attention", "gram", "module"]
    gqa_scale: Literal["skip", "repeat"]
    clip_steps: Annotated[int, Field(ge=1, le=100)]
    clip_max_shrink: Annotated[float, Field(gt=0.0, lt=1.0)]


class PreviewSection(Section):
    """`quant.preview`: FAQ's look at later blocks."""

    window: Annotated[int, Field(ge=0)]
    gamma: Fraction
    roles: Literal["all", "residual"]
    source: Literal["same_role", "next_linear", "consumers"]
    stream: Literal["full", "quantized"]
    weights: Literal["uniform", "linear", "geometric", "error"]
    norm: Literal["none", "mean", "max"]
    fuse: Literal["convex", "geometric", "max"]
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None


class GPTQSection(Section):
    """`quant.gptq`: column-wise rounding."""

    damping: Annotated[float, Field(gt=0.0, le=10.0)]
    act_order: bool
    block_size: Positive


class GPTAQSection(Section):
    """`quant.gptaq`: what GPTAQ, FOEM and ResComp add to GPTQ's update."""

    alpha: Fraction
    beta: Fraction
    original: Fraction


class QronosSection(Section):
    """`quant.qronos`: rounding by Qronos."""

    alpha: Annotated[float, Field(gt=0.0, le=1.0)]


class MSESection(Section):
    """`quant.mse`: the search for the range that is closest to the weights."""

    p: Annotated[float, Field(gt=0.0, le=10.0)]
    steps: Annotated[int, Field(ge=1, le=1000)]
    max_shrink: Annotated[float, Field(gt=0.0, lt=1.0)]


class CorrectionSection(Section):
    """`quant.correction`: QEP and LoaQ."""

    strength: PerRole
    residual_strength: Fraction
    damping: Annotated[float, Field(gt=0.0, le=10.0)]
    roles: tuple[RoleName, ...]
    variant: Literal["linear", "residual", "norm_aware"]

    def strength_of(self, role: str) -> float | Literal["search"]:
        """Return how far a role's weights are moved; 0 for a role that is not corrected."""
        if role not in self.roles:
            return 0.0
        if isinstance(self.strength, dict):
            return next(value for name, value in self.strength.items() if name == role)
        return self.strength


class RotationSection(Section):
    """`quant.rotation`: where a rotation goes, and its draw."""

    places: tuple[Literal["R1", "R2", "R3", "R4"], ...]
    seed: Annotated[int, Field(ge=0)]


class SmoothingSection(Section):
    """`quant.smoothing`: SmoothQuant's scales."""

    alpha: Fraction


class ActivationsSection(Section):
    """`quant.activations`: the grid of the linears' inputs; bits null leaves them as they are."""

    bits: Annotated[int, Field(ge=2, le=8)] | None
    symmetric: bool
    granularity: Literal["token", "tensor"]
    dynamic: bool
    clip_ratio: Annotated[float, Field(gt=0.0, le=1.0)]
    targets: tuple[RoleName, ...]
    kv_bits: Annotated[int, Field(ge=2, le=8)] | None
    bmm: bool
    seen_by_rounding: bool

    @property
    def key_bits(self) -> int | None:
        """Bits of keys and values; None where they are left as they are."""
        return self.kv_bits if self.kv_bits is not None or not self.bmm else self.bits


class RefinementSection(Section):
    """`quant.refinement`: how long a block is learned, from what, and at which rates."""

    steps: Annotated[int, Field(ge=0, le=100_000)]
    windows: Positive
    batch: Positive
    patience: Positive | None
    seed: Annotated[int, Field(ge=0)]
    start: Literal["none", "smoothquant", "lae"]
    scale_rate: Rate
    clip_rate: Rate
    offset_rate: Rate | None
    adapt_on: Literal["evaluation"] | None


class CheckpointSection(Section):
    """`quant.checkpoint`: where round=checkpoint finds weights that are quantized already."""

    path: str | None
    hub_id: str | None
    revision: str | None


class ExternalSection(Section):
    """`quant.external`: the tool that round=external runs."""

    driver: str | None
    requirements: tuple[str, ...]
    options: dict[str, int | float | str | bool | None]


class LinearOverride(Section):
    """One entry of `quant.overrides`: a grid for the linears whose names match a pattern."""

    pattern: str
    bits: Annotated[int, Field(ge=2, le=8)] | None
    group_size: int | None


class QuantSection(Section):
    """`quant`: the stages of a method and their options."""

    name: Slug
    rotate: Annotated[str, _value_of("rotate")]
    scale: Annotated[str, _value_of("scale")]
    clip: Annotated[str, _value_of("clip")]
    correct: Annotated[str, _value_of("correct")]
    round: Annotated[str, _value_of("round")]
    refine: Annotated[str, _value_of("refine")]
    bits: Annotated[int, Field(ge=2, le=8)]
    group_size: int
    symmetric: bool
    symmetric_grid: Literal["signed", "half_range", "full_range"]
    scale_dtype: DType | None
    search: SearchSection
    preview: PreviewSection
    mse: MSESection
    gptq: GPTQSection
    gptaq: GPTAQSection
    qronos: QronosSection
    correction: CorrectionSection
    rotation: RotationSection
    smoothing: SmoothingSection
    activations: ActivationsSection
    refinement: RefinementSection
    checkpoint: CheckpointSection
    external: ExternalSection
    like: Slug | None
    trace_windows: Annotated[int, Field(ge=0)]
    skip: tuple[str, ...]
    overrides: tuple[LinearOverride, ...]


class EvaluationSection(Section):
    """`evaluation`: perplexity protocols and tasks, and how much of each."""

    name: Slug
    protocols: tuple[str, ...]
    tasks: tuple[str, ...]
    n_windows: Positive | None
    n_documents: Positive | None
    kl: bool
    batch_tokens: Positive
    batch_size: Positive
    add_bos: bool
    num_fewshot: Annotated[int, Field(ge=0)]
    keep_items: bool


class TrackingSection(Section):
    """`tracking`: where a view of the run is shown."""

    name: Literal["none", "wandb", "trackio", "mlflow"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline", "disabled"]
    group: Slug | None
    tags: tuple[str, ...]


class PathsSection(Section):
    """`paths`: the folders that are written."""

    runs: Path
    reports: Path
    presearch: Path


class DataSection(Section):
    """`data`: files of the user's own."""

    wikitext2_path: Path | None


def _is_margin(text: str) -> str:
    parse_margin(text)
    return text


class ReportSection(Section):
    """`report`: the report that a sweep ends with; null writes none."""

    name: Slug | None
    title: str | None
    margin: Annotated[str, AfterValidator(_is_margin)] | None


class MemorySection(Section):
    """`memory`: what weights, streams and statistics may take; null is what is free."""

    device_gigabytes: Annotated[float, Field(gt=0.0)] | None
    host_gigabytes: Annotated[float, Field(gt=0.0)] | None


class CacheSection(Section):
    """`cache`: how much of it is kept."""

    max_gigabytes: Annotated[float, Field(gt=0.0)] | None

    @property
    def max_bytes(self) -> int | None:
        """The budget in bytes; None keeps everything."""
        return None if self.max_gigabytes is None else int(self.max_gigabytes * 1e9)


class Experiment(Section):
    """One cell: everything that decides a result, and where it is written and shown."""

    model: ModelSection
    quant: QuantSection
    calibration: CalibrationSection
    scenario: ScenarioSection
    evaluation: EvaluationSection
    presearch: PresearchSection
    tracking: TrackingSection
    paths: PathsSection
    data: DataSection
    report: ReportSection
    bits: int
    group_size: int
    symmetric: bool
    window: int
    gamma: float
    seed: int
    limit: Positive | None
    allow_repeat: bool
    device: str
    dtype: DType
    rerun: bool
    on_error: Literal["continue", "stop"]
    isolate: Literal["none", "process"]
    memory_limit_gigabytes: Annotated[float, Field(gt=0.0)] | None
    memory: MemorySection
    cache: CacheSection

    @property
    def method(self) -> Method:
        """The values of its stages, which say what it reads and which options count."""
        return method_of(self.quant)

    @property
    def quantizes(self) -> bool:
        """Whether any weight is put on a grid; false for the full precision baseline."""
        return self.method.quantizes

    @property
    def is_foreign(self) -> bool:
        """Whether another tool makes the quantized weights."""
        return self.method.is_foreign

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage reads activations; false for the baseline and for plain RTN."""
        return self.method.is_calibrated

    @property
    def adapted_on(self) -> str | None:
        """The protocol on whose text the last block is learned; None where none is used so."""
        if not self.method.owns("refinement") or self.quant.refinement.adapt_on is None:
            return None
        return self.evaluation.protocols[0]

    @property
    def calibration_mixture(self) -> dict[str, float]:
        """The domains and their shares of the windows after the scenario has had its say."""
        return mixture_of(self.calibration, self.scenario)

    @property
    def needs_reference(self) -> bool:
        """Whether the full precision model's hidden states are wanted, to compare a quantized one with."""
        return self.evaluation.kl and bool(self.evaluation.protocols)

    @property
    def n_calibration_samples(self) -> int:
        """The number of calibration windows after the scenario has had its say."""
        return self.scenario.n_samples or self.calibration.n_samples

    def as_yaml(self) -> str:
        """Return the resolved configuration in the layout of `conf/`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)

    def n_windows(self) -> int | None:
        """Windows of each perplexity protocol, `limit` applied; None is all of them."""
        return smaller(self.evaluation.n_windows, self.limit)

    def n_documents(self) -> int | None:
        """Documents of each task, `limit` applied; None is all of them."""
        return smaller(self.evaluation.n_documents, self.limit)


def smaller(a: int | None, b: int | None) -> int | None:
    """Return the smaller of two caps; None caps nothing."""
    limits = [n for n in (a, b) if n is not None]
    return min(limits) if limits else None
