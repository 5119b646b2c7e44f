"""The cached stage that looks over the weights themselves, after quantizing and before their gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from faqbench.config import Experiment
from faqbench.models import Model
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import evaluated_key
from faqbench.stages import StageCache

CODE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class WeightsCheck:
    """What the gates need to know of a model's weights.

    Attributes:
        linears: full names of all linears that a quantizer is responsible for.
        not_finite: names of parameters that hold NaN or infinity.
        is_tied: whether output head and embedding are one tensor.
        wants_tied: whether the config says so.
    """

    linears: tuple[str, ...]
    not_finite: tuple[str, ...]
    is_tied: bool
    wants_tied: bool


def check_weights(
    experiment: Experiment, model: CellModel, fingerprints: Mapping[str, str], cache: StageCache
) -> WeightsCheck:
    """Look over the weights that are evaluated.

    Args:
        experiment: the cell.
        model: its model, quantized or not; loaded when the stage is not in the cache.
        fingerprints: of the weights as loaded and, where there was one, of the calibration set.
        cache: where the stage is kept and found.
    """

    def build(folder: Path) -> None:
        found = look_over(model.evaluated)
        (folder / "check.json").write_text(json.dumps(asdict(found)))

    evaluated = evaluated_key(experiment, fingerprints, model.device.type)
    key = {"version": CODE_VERSION, "model": evaluated}
    entry = cache.get("weights_check", key, build)
    raw = json.loads((entry.path / "check.json").read_text())
    return WeightsCheck(
        linears=tuple(raw["linears"]),
        not_finite=tuple(raw["not_finite"]),
        is_tied=raw["is_tied"],
        wants_tied=raw["wants_tied"],
    )


def look_over(model: Model) -> WeightsCheck:
    """Look over the weights of a model, one at a time."""
    head, embedding = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    return WeightsCheck(
        linears=tuple(model.architecture.linear_names()),
        not_finite=tuple(
            name for name, weight in model.named_weights() if not bool(weight.isfinite().all())
        ),
        is_tied=head is not None and head.weight is embedding.weight,
        wants_tied=bool(model.module.config.get_text_config().tie_word_embeddings),
    )
