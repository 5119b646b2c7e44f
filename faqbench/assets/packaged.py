"""The packaged model, benchmarks and texts by name; each is fetched when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from faqbench.assets.benchmark_data import DATASETS
from faqbench.assets.catalog import ASSETS, BENCHMARK_DATA, MODELS
from faqbench.assets.folder import place_of, prepared
from faqbench.assets.text_sources import TEXT_SOURCES
from faqbench.config import UserError, did_you_mean
from faqbench.stages import Progress

DATA_NAME = BENCHMARK_DATA.name


def model_names() -> list[str]:
    """Return the names of the packaged models."""
    return sorted(MODELS)


def dataset_names() -> list[str]:
    """Return the names of the packaged benchmarks."""
    return sorted(DATASETS)


def text_source_names() -> list[str]:
    """Return the names of the packaged text sources."""
    return sorted([*TEXT_SOURCES, "boolq"])


def packaged_model(name: str, progress: Progress) -> Path:
    """Return a folder that transformers loads offline: config, float32 safetensors, tokenizer.

    Raises:
        UserError: for an unknown name, when the model cannot be fetched, and for one with terms of
            use that was not fetched by name before.
    """
    _require(name, "packaged model", model_names())
    return prepared(MODELS[name], progress)


def packaged_model_place(name: str) -> tuple[Path, dict[str, object]]:
    """Return where a model's folder lies, or will once it is fetched, and what its content depends on.

    Raises:
        UserError: for an unknown name.
    """
    _require(name, "packaged model", model_names())
    return place_of(MODELS[name]), MODELS[name].key()


def packaged_data_place() -> tuple[Path, dict[str, object]]:
    """Return where benchmarks and texts lie, or will, and what their content depends on."""
    return place_of(BENCHMARK_DATA), BENCHMARK_DATA.key()


def packaged_dataset(name: str, progress: Progress) -> Path:
    """Return the parquet file of a benchmark's validation split, with the hub's own columns.

    Raises:
        UserError: for an unknown name, or when the data cannot be fetched.
    """
    _require(name, "packaged dataset", dataset_names())
    return prepared(BENCHMARK_DATA, progress) / "datasets" / f"{name}.parquet"


def packaged_texts(source: str, progress: Progress) -> list[str]:
    """Return the unique texts of a source, in order of first appearance.

    The texts of `boolq` are the passages of `packaged_dataset("boolq")`, character by character, so
    what was calibrated on can be recognised there.

    Raises:
        UserError: for an unknown source, or when the data cannot be fetched.
    """
    _require(source, "packaged text source", text_source_names())
    path = prepared(BENCHMARK_DATA, progress) / "texts" / f"{source}.parquet"
    texts: list[str] = pq.read_table(path).column("text").to_pylist()
    return texts


def benchmark_data_origin() -> str:
    """Return the wheel that benchmarks and texts come from, as pip spells it."""
    (wheel,) = BENCHMARK_DATA.wheels
    return wheel.requirement


def fetch(
    progress: Progress, names: Sequence[str] = (), *, accept_terms: bool = False
) -> list[tuple[str, Path]]:
    """Fetch assets that are not there yet, all at once, verify them, and return their names and folders.

    Args:
        progress: shows downloads and terms of use.
        names: of `asset_names()`; none of them means all that come without terms of use.
        accept_terms: whether the user accepts the terms of those that have some.

    Raises:
        UserError: for an unknown name, terms that are not accepted, or a failed download.
    """
    known = {asset.name: asset for asset in ASSETS}
    for name in names:
        _require(name, "asset", known)
    chosen = [known[name] for name in names] or [a for a in ASSETS if a.terms is None]
    # pip and the conversion are processes of their own, so threads are enough to use several cores.
    with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
        prepare = partial(prepared, progress=progress, accept_terms=accept_terms)
        folders = list(pool.map(prepare, chosen))
    return [(asset.name, folder) for asset, folder in zip(chosen, folders, strict=True)]


def asset_names(*, with_terms: bool) -> list[str]:
    """Return the names of the assets that have terms of use to accept, or of those that have none."""
    return [asset.name for asset in ASSETS if (asset.terms is not None) == with_terms]


def _require(name: str, kind: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if name not in names:
        hint = did_you_mean(name, names)
        raise UserError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")
