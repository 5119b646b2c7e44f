"""A checkpoint of safetensors: files of a bounded size, their index, and the model's config beside them.

Until the checkpoint is whole each file has a list of the parts in it beside it, which is written last: what
an export that was stopped has packed is not packed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from faqbench.export.fold import Part
from faqbench.files import atomic_write
from faqbench.quantization import QuantizedLinear

Encode = Callable[[QuantizedLinear], Mapping[str, Tensor]]


class Shards:
    """Takes the parts of a model one by one; a single file of them is `model.safetensors`."""

    def __init__(
        self, folder: Path, most_bytes: int, encode: Encode, config: Any, settings: Mapping[str, Any]
    ) -> None:
        """Begin a checkpoint.

        Args:
            folder: to write into, where an earlier attempt at the same checkpoint may have left files.
            most_bytes: of one file, a single tensor aside.
            encode: gives the tensors of a linear, by the last part of their names.
            config: of transformers.
            settings: the `quantization_config` that the loader expects.
        """
        self._folder, self._most, self._encode = folder, most_bytes, encode
        self._held: dict[str, Tensor] = {}
        self._parts: list[str] = []  # whose tensors are held
        self._shards = [json.loads(path.read_text()) for path in self._lists()]
        self._done = {part for shard in self._shards for part in shard["parts"]}
        config.save_pretrained(folder)
        path = folder / "config.json"
        content = json.loads(path.read_text()) | {"quantization_config": dict(settings)}
        path.write_text(json.dumps(content, indent=2) + "\n")

    def add(self, name: str, part: Part) -> None:
        """Take a parameter or a quantized linear; what an earlier attempt has written stays as it is."""
        if name in self._done:
            return
        tensors = {name: part} if isinstance(part, Tensor) else self._packed(name, part)
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if self._held and _size(self._held) + n_bytes > self._most:
            self._write()
        self._held |= {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        self._parts.append(name)

    def close(self) -> None:
        """Write the rest, and give the files the names that loaders know."""
        if self._held:
            self._write()
        n_shards = len(self._shards)
        weight_map: dict[str, str] = {}
        for index, shard in enumerate(self._shards):
            file = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
            file = file if n_shards > 1 else "model.safetensors"
            self._part(index).rename(self._folder / file)
            weight_map |= dict.fromkeys(shard["tensors"], file)
        if n_shards > 1:
            total = sum(shard["n_bytes"] for shard in self._shards)
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            index_file = self._folder / "model.safetensors.index.json"
            index_file.write_text(json.dumps(content, indent=1))
        for path in self._lists():
            path.unlink()

    def _packed(self, name: str, linear: QuantizedLinear) -> dict[str, Tensor]:
        return {f"{name}.{kind}": tensor for kind, tensor in self._encode(linear).items()}

    def _write(self) -> None:
        index = len(self._shards)
        save_file(self._held, self._part(index), {"format": "pt"})
        shard = {"parts": self._parts, "tensors": list(self._held), "n_bytes": _size(self._held)}
        atomic_write(self._part(index).with_suffix(".json"), json.dumps(shard).encode())
        self._shards.append(shard)
        self._held, self._parts = {}, []

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index}.safetensors"

    def _lists(self) -> list[Path]:
        n_lists = len(list(self._folder.glob("part-*.json")))
        return [self._part(index).with_suffix(".json") for index in range(n_lists)]


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
