"""The checks of a model that need none of its weights: by its config.json and the headers of its files.

They are made before anything is computed, for all cells of a sweep, and again by every load. What they
find is what would otherwise end in a traceback after minutes of work, or in a number of another model:

    what it is       a dense decoder of text alone, of a known family, in full precision
    its files        all there, whole, inside the folder, each tensor once
    its tensors      every weight matrix that the config asks for, in its shape, in floating point
    its tokenizer    some file of one, unless `model.tokenizer` names another

What no header can tell (norms and biases by transformers' own names, tied weights that differ) is checked
by `loading` when the weights are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch

from faqbench import formatting
from faqbench.config import UserError
from faqbench.config.experiment import ModelSection
from faqbench.models.architecture import Architecture, architecture_of
from faqbench.models.sources import checkpoint_folder, random_config, tokenizer_files, weights_source
from faqbench.models.tensors import Stored, TensorHeader, read_config, read_headers, weight_files
from faqbench.stages import hash_json

_FULL_PRECISION = ("F64", "F32", "F16", "BF16")
_QUANTIZED_KEYS = ("quantization_config", "compression_config")
_N_SHOWN = 3
_MOST_BLOCKS = 10_000
TIED_BUT_HEAD = (
    "config.json says tie_word_embeddings=true, but its files hold an output head that differs from the "
    "embedding; set it to false if that head is meant, or remove the head from the files"
)

_inspected: dict[str, Architecture] = {}


def inspect_model(section: ModelSection) -> Architecture | None:
    """Return a model's architecture, all that can be checked without its weights having been checked.

    A model that did not change since is not looked at twice.

    Returns:
        None when the model is not on this machine yet.

    Raises:
        UserError: one sentence with the model's name and what is wrong with it.
    """
    folder = checkpoint_folder(section)
    if folder is None and section.source == "path":
        raise UserError(f"model.path={section.path} is not a model folder: it has no config.json there.")
    try:
        if section.source == "random":
            architecture = architecture_of(random_config(section.random or {}))
            _check_size(architecture)
            return architecture
        if folder is None:
            return None
        state = hash_json([weights_source(section), section.model_dump(mode="json")])
        if state not in _inspected:
            _inspected[state] = _inspect(folder, section)
        return _inspected[state]
    except UserError as error:
        reason = str(error) if str(error).endswith("?") else f"{str(error).rstrip('.')}."
        raise UserError(f"model={section.name} could not be loaded: {reason}") from error


def listed(names: Iterable[str]) -> str:
    """Return the first few names of many, and how many more there are."""
    known = sorted(names)
    more = f" and {len(known) - _N_SHOWN} more" if len(known) > _N_SHOWN else ""
    return ", ".join(known[:_N_SHOWN]) + more


def _inspect(folder: Path, section: ModelSection) -> Architecture:
    _check_kinds(folder)
    config = read_config(folder)
    _check_precision(config)
    architecture = architecture_of(config)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds an adapter (adapter_config.json) beside its weights, which loading would "
            "apply; merge it into the weights, or move it away"
        )
    files = weight_files(folder)
    is_here = section.source != "hub" or (files and all(f.is_file() for f in files))
    if is_here:  # else the hub's client brings them when they are loaded
        _check_tensors(architecture, _headers(folder, files))
        if section.tokenizer is None and not tokenizer_files(folder):
            raise UserError(
                f"{folder} has no tokenizer (tokenizer.json or tokenizer.model, for example); put it "
                "there, or set model.tokenizer to a folder, a hub id, or bytes"
            )
    return architecture


def _check_kinds(folder: Path) -> None:
    """Refuse a folder with a pipe, a socket or a device, of which a library might wait for the end."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path.name} is neither a file nor a folder, so reading it may never end; take it away"
            )


def _check_size(architecture: Architecture) -> None:
    """Refuse a model of random weights that no memory holds, by arithmetic and before it is built."""
    if architecture.n_blocks > _MOST_BLOCKS:
        raise UserError(
            f"num_hidden_layers={architecture.n_blocks} is more than the {_MOST_BLOCKS} blocks that are "
            "built"
        )
    n_bytes = 4 * sum(prod(shape) for shape in architecture.weight_shapes().values())
    memory = psutil.virtual_memory().total
    if n_bytes > memory:
        raise UserError(
            f"its weights take {formatting.n_bytes(n_bytes)} in float32, and this machine has "
            f"{formatting.n_bytes(memory)} of memory; make it smaller"
        )


def _check_precision(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose config says that its weights are codes of some quantizer."""
    for part in (config, config.get("text_config") or {}):
        for key in _QUANTIZED_KEYS:
            settings = part.get(key)
            if settings:
                method = settings.get("quant_method") if isinstance(settings, dict) else settings
                raise UserError(
                    f"its config.json says that its weights are quantized already ({key}: "
                    f"{method or 'of an unnamed method'}); faqbench quantizes models of full precision: "
                    "take the one that this was made from"
                )


def _headers(folder: Path, files: list[Path]) -> dict[str, TensorHeader]:
    if not files:
        others = sorted(p.name for pattern in ("*.bin", "*.pth") for p in folder.glob(pattern))
        hint = f"; {others[0]} is not read, since it may run code" if others else ""
        raise UserError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{hint}")
    return read_headers(files)


def _check_tensors(architecture: Architecture, headers: Mapping[str, TensorHeader]) -> None:
    """Compare what the files hold with what the config asks for."""
    for name, header in headers.items():
        if header.dtype not in _FULL_PRECISION and _is_weight(name, architecture):
            raise UserError(
                f"{header.file.name} holds {name} as {header.dtype}, so its weights are quantized "
                "already; faqbench quantizes models of full precision: take the one that this was made "
                "from"
            )
    if architecture.n_blocks > len(headers):
        raise UserError(
            f"its config.json says num_hidden_layers={architecture.n_blocks}, but its files hold "
            f"{len(headers)} tensors in all"
        )
    expected = architecture.weight_shapes()
    stored = {name: _stored(name, headers) for name in expected}
    missing = [name for name, header in stored.items() if header is None]
    if architecture.is_tied and f"{architecture.head}.weight" in headers:
        missing = [name for name in missing if name != f"{architecture.embedding}.weight"]
    if missing:
        raise UserError(lack_of(missing, len(expected), headers))
    for name, found in stored.items():
        if found is not None and found.shape != expected[name]:
            raise UserError(
                f"{found.file.name} holds {name} as {list(found.shape)}, but config.json makes it "
                f"{list(expected[name])}"
            )
    _check_tied(architecture, headers)


def _check_tied(architecture: Architecture, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse an output head of its own where the config says that it is the embedding.

    These two tensors are read, where both are stored: no header tells whether they are equal.
    """
    names = [f"{part}.weight" for part in (architecture.embedding, architecture.head)]
    if not architecture.is_tied or not all(name in headers for name in names):
        return
    embedding, head = (Stored(headers).read(name) for name in names)
    if embedding.dtype != head.dtype or not torch.equal(embedding, head):
        raise UserError(TIED_BUT_HEAD)


def lack_of(missing: Sequence[str], n_expected: int, found: Iterable[str]) -> str:
    """Say which tensors a model's files lack, and what might be the reason."""
    text = f"its files lack {len(missing)} of {n_expected} tensors ({listed(missing)})"
    others = [name for name in found if any(name.endswith(f".{lost}") for lost in missing)]
    if others:
        return f"{text}, and hold others of longer names ({listed(others)}): rename these"
    if "lm_head.weight" in missing:
        return f"{text}; if the output head is the embedding, config.json needs tie_word_embeddings=true"
    return text


def _is_weight(name: str, architecture: Architecture) -> bool:
    """Say whether a name is one of the model's own: of a block, the embedding or the head."""
    parts = (architecture.blocks, architecture.embedding, architecture.head)
    return any(f".{name}".startswith((f".{part}.", f".{_bare(part)}.")) for part in parts)


def _stored(name: str, headers: Mapping[str, TensorHeader]) -> TensorHeader | None:
    """Return a tensor's header; a checkpoint of the decoder alone leaves the first part of names out."""
    return headers.get(name) or headers.get(_bare(name))


def _bare(name: str) -> str:
    return name.partition(".")[2] or name
