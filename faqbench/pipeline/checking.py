"""What is checked of a cell's model before anything is computed: all that its config and headers tell.

`check_models` is asked for all cells of a sweep before the first one starts, and by `plan`; `check_model`
by each cell again, since files change. A check of something else that a config or a header tells belongs
into `models.inspection` when it concerns the model alone, and here when it concerns the cell as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from faqbench.config import Experiment, UserError
from faqbench.evaluation import check_context, resolve_protocol
from faqbench.models import check_rotation, inspect_model, is_streamed
from faqbench.pipeline.foreign import driver_of
from faqbench.quantization import assign_grids, check_correction


def check_models(experiments: Iterable[Experiment]) -> None:
    """Check the models of several cells.

    Raises:
        UserError: all mistakes, each once.
    """
    mistakes: dict[str, None] = {}
    for experiment in experiments:
        try:
            check_model(experiment)
        except UserError as error:
            mistakes[str(error)] = None
    if mistakes:
        raise UserError("\n  ".join(mistakes))


def check_model(experiment: Experiment) -> None:
    """Check a cell's model, and that the cell's settings fit it; a model that is not here yet passes.

    Raises:
        UserError: for a model that cannot be used, a group size that does not divide a linear's input, a
            pattern that matches no linear, a correction or a rotation that does not suit the family,
            a protocol of windows that are longer than the model's context, and a budget that no block fits.
    """
    architecture = inspect_model(experiment.model)
    if architecture is None:
        return
    protocols = [resolve_protocol(name, experiment) for name in experiment.evaluation.protocols]
    try:
        if (
            experiment.needs_calibration or not experiment.is_foreign
        ):  # a checkpoint has its own grid
            assign_grids(architecture, experiment.quant)
        if experiment.is_foreign and experiment.needs_calibration:
            driver_of(experiment)
        check_correction(experiment.quant, architecture.roles)
        check_rotation(architecture, experiment.quant)
        is_streamed(experiment)
        for protocol in protocols:
            check_context(architecture.context, protocol.seq_len)
    except UserError as error:
        raise UserError(f"model={experiment.model.name}: {error}") from error
