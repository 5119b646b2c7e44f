"""The full precision model's hidden states on a protocol's windows, on disk or made on the way.

What a quantized model is compared with is kept after the last norm, in the evaluation's dtype: hidden_size
numbers per token instead of a vocabulary's. They are written and read some windows at a time, so that
neither side holds them all. Of a streamed model they would take more than the model's memory, and it reads
its blocks anew for every cell in any case: there the full precision model walks beside the quantized one.

    hidden.raw     [n_windows, seq_len - 1, hidden_size], little endian, rows one after the other
    hidden.json    dtype and shape
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from typing_extensions import TypedDict

from faqbench.foreign import read_as
from faqbench.models import Model

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class HiddenWriter:
    """Writes hidden states into a folder as they are computed; a context manager."""

    def __init__(self, folder: Path, seq_len: int) -> None:
        self._folder = folder
        self._seq_len = seq_len
        self._n_rows = 0
        self._dtype, self._width = "", 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> HiddenWriter:
        """Open the file."""
        self._file = (self._folder / "hidden.raw").open("wb")
        return self

    def append(self, hidden: torch.Tensor) -> None:
        """Write the next rows, [n, hidden_size]; a window has seq_len - 1 of them."""
        assert self._file is not None
        self._dtype, self._width = str(hidden.dtype), hidden.shape[1]
        self._n_rows += len(hidden)
        self._file.write(hidden.contiguous().cpu().view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, and describe it when it is whole."""
        assert self._file is not None
        self._file.close()
        if kind is None:
            shape = [self._n_rows // (self._seq_len - 1), self._seq_len - 1, self._width]
            about = {"dtype": self._dtype, "shape": shape}
            (self._folder / "hidden.json").write_text(json.dumps(about))


class _About(TypedDict):
    dtype: str
    shape: tuple[int, int, int]


# Turns hidden states into what the head of the model that is compared takes; None where that is the head of
# the full precision model.
Rotate = Callable[[torch.Tensor], torch.Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The full precision model, which walks beside the one that is compared with it.

    Attributes:
        view: in the evaluation's dtype.
        rotate: see above.
    """

    view: Model
    rotate: Rotate = None


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Hidden states on disk.

    Attributes:
        path: of `hidden.raw`.
        dtype: of the numbers.
        shape: windows, scored tokens of a window, hidden_size.
        rotate: see above.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, int, int]
    rotate: Rotate = None

    @classmethod
    def open(cls, folder: Path, rotate: Rotate = None) -> HiddenStates:
        """Return what a `HiddenWriter` left in a folder.

        Raises:
            ValueError: when it did not.
        """
        about = read_as(folder / "hidden.json", _About)
        return cls(
            path=folder / "hidden.raw", dtype=_DTYPES[about["dtype"]], shape=about["shape"], rotate=rotate
        )

    def read(self, start: int, n_windows: int, device: torch.device) -> torch.Tensor:
        """Return the rows of some windows, [n_windows * n_tokens, hidden_size]."""
        _, n_tokens, width = self.shape
        n_bytes = n_tokens * width * self.dtype.itemsize
        count = n_windows * n_bytes
        raw = np.fromfile(self.path, dtype=np.uint8, count=count, offset=start * n_bytes)
        assert len(raw) == count, f"{self.path} ends before window {start + n_windows}"
        hidden = torch.from_numpy(raw).view(self.dtype).view(-1, width).to(device)
        return hidden if self.rotate is None else self.rotate(hidden)
