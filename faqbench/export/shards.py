"""A checkpoint of safetensors: files of a bounded size, their index, and the model's config beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from faqbench.export.fold import Part
from faqbench.quantization import QuantizedLinear

Encode = Callable[[QuantizedLinear], Mapping[str, Tensor]]


class Shards:
    """Takes the parts of a model one by one; a single file of them is `model.safetensors`."""

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        encode: Encode,
        config: Any,
        settings: Mapping[str, Any],
    ) -> None:
        """Begin a checkpoint.

        Args:
            folder: to write into.
            most_bytes: of one file, a single tensor aside.
            encode: gives the tensors of a linear, by the last part of their names.
            config: of transformers.
            settings: the `quantization_config` that the loader expects.
        """
        self._folder, self._most, self._encode = folder, most_bytes, encode
        self._held: dict[str, Tensor] = {}
        self._n_held, self._n_total = 0, 0
        self._shards: list[list[str]] = []
        config.save_pretrained(folder)
        path = folder / "config.json"
        content = json.loads(path.read_text()) | {"quantization_config": dict(settings)}
        path.write_text(json.dumps(content, indent=2) + "\n")

    def add(self, name: str, part: Part) -> None:
        """Take a parameter or a quantized linear."""
        if isinstance(part, QuantizedLinear):
            for kind, tensor in self._encode(part).items():
                self._add(f"{name}.{kind}", tensor)
        else:
            self._add(name, part)

    def close(self) -> None:
        """Write the rest, and give the files the names that loaders know."""
        self._write()
        n_shards = len(self._shards)
        if n_shards == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            file = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
            self._part(index).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        content = {"metadata": {"total_size": self._n_total}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))

    def _add(self, name: str, tensor: Tensor) -> None:
        if self._held and self._n_held + tensor.nbytes > self._most:
            self._write()
        self._held[name] = tensor.contiguous().clone()
        self._n_held += tensor.nbytes
        self._n_total += tensor.nbytes

    def _write(self) -> None:
        save_file(self._held, self._part(len(self._shards)), {"format": "pt"})
        self._shards.append(list(self._held))
        self._held, self._n_held = {}, 0

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index}.safetensors"
