"""What is checked and said of cells before the first of them starts: their models and their dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from faqbench.config import Experiment, UserError
from faqbench.config.section import DType
from faqbench.records import finished_record


def check_unfinished(experiments: Iterable[Experiment]) -> None:
    """Check the models of cells that did not finish before; those that did need their models no more.

    Raises:
        UserError: all mistakes of all cells, each once.
    """
    from faqbench.pipeline import check_models

    check_models([e for e in experiments if finished_record(e) is None])


def check_to_run(experiments: Sequence[Experiment]) -> None:
    """Check cells that are about to run: their models, and that those with terms of use were accepted.

    Raises:
        UserError: all mistakes of all cells, each once.
    """
    from faqbench.assets import check_packaged_terms

    check_unfinished(experiments)
    names = {e.model.asset: None for e in experiments if finished_record(e) is None}
    for name in names:
        if name is not None:
            check_packaged_terms(name)


def dtype_notes(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Yield a sentence on each dtype and device of the cells: why it is fast there, or how slow.

    Raises:
        UserError: for a dtype that a device of this machine does not have.
    """
    from faqbench.hardware import dtype_warning, fast_dtype, named_device

    for name, dtype in _choices(experiments):
        device = named_device(name)
        fast = fast_dtype(device)
        warning = dtype_warning(device, dtype) if _is_here(name) else None
        if warning is not None:
            yield warning
        elif dtype == fast.dtype:
            yield f"dtype={dtype} on {device}: {fast.reason}."
        else:
            yield f"dtype={dtype} on {device}, where dtype=auto means {fast.dtype}: {fast.reason}."


def safe_dtypes(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Yield a sentence on each dtype that the hardware was not there, or not able, to be asked for."""
    from faqbench.hardware import fast_dtype, named_device

    for name, dtype in _choices(experiments):
        fast = fast_dtype(named_device(name))
        if dtype == fast.dtype and not fast.is_known:
            yield f"dtype={dtype}: {fast.reason}."


def _choices(experiments: Sequence[Experiment]) -> Sequence[tuple[str, DType]]:
    return list(dict.fromkeys((e.device, e.dtype) for e in experiments))


def _is_here(device: str) -> bool:
    from faqbench.hardware import resolve_device

    try:
        resolve_device(device)
    except UserError:
        return False
    return True
