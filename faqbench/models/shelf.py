"""Where hidden states wait between two blocks: with the model, beside it, or on disk.

    on the device       while `Room.hidden_bytes` holds them
    in pinned memory    of the host of a CUDA device, from where copies run beside computing
    in a mapped file    otherwise: one without a name, which goes with the process however that ends

A place on a shelf is a tensor in any case, in the dtype of the model, and nothing that is computed from it
depends on where it lies. The pages of a file are let go after every use: they are the system's, which keeps
them while it has nothing better to do with its memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from faqbench.files import explain_os_error
from faqbench.models.model import Room
from faqbench.stages.cache import cache_root

_REMEDY = "free some space, set FAQBENCH_CACHE to a folder on another disk, or raise memory.host_gigabytes"
_ALIGNED = 64  # bytes, as the allocators of torch do: products round by where their factors lie


class Shelf:
    """Room for tensors whose sizes are known beforehand.

    Attributes:
        device: of the model.
        is_away: whether they lie anywhere else than there.
    """

    def __init__(self, n_bytes: int, room: Room, device: torch.device, n_beside: int = 1) -> None:
        """Take the memory, or the space on disk.

        Args:
            n_bytes: from `n_bytes`, of all tensors.
            room: how much there may be on the device and in the host's memory.
            device: of the model.
            n_beside: shelves of this size that are in use together.

        Raises:
            UserError: when the disk is full.
        """
        self.device = device
        self._room, self._n_beside = room, n_beside
        self._map: mmap.mmap | None = None
        self._used = 0
        self.is_away = room.hidden_bytes is not None and n_beside * n_bytes > room.hidden_bytes
        is_pinned = device.type == "cuda" and n_beside * n_bytes <= (room.host_bytes or 0)
        if not self.is_away:
            self._bytes = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        elif is_pinned:
            self._bytes = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        else:
            self._bytes = self._mapped(n_bytes)

    def place(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the next tensor, of a shape and dtype; what is in it is undefined."""
        size = dtype.itemsize * prod(shape)
        own = self._bytes[self._used : self._used + size]
        self._used += n_bytes(shape, dtype)
        return own.view(dtype).view(*shape)

    def another(self, n_bytes: int) -> Shelf:
        """Return a shelf of another size that the same is known of."""
        return Shelf(n_bytes, self._room, self.device, self._n_beside)

    def let_go(self) -> None:
        """Give the memory of a file's pages back; they are read again when they are used again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _mapped(self, size: int) -> Tensor:
        root = cache_root()
        with explain_os_error("write hidden states that wait", root, _REMEDY):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, no signal later
                self._map = mmap.mmap(file.fileno(), size)
        return torch.frombuffer(self._map, dtype=torch.uint8)


def n_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return what a tensor takes of a shelf."""
    return -(-dtype.itemsize * prod(shape) // _ALIGNED) * _ALIGNED
