"""A checkpoint that some tool has quantized, as the tensors of its full precision parent.

    folder   config.json with `quantization_config`, and safetensors, read through `faqbench.layouts`
    GGUF     one *.gguf file, by itself or in a folder, read by transformers through the gguf package

Its parent says which tensors there are and in which shapes; what the checkpoint holds in the place of a
weight is decoded when it is read, one tensor at a time (those of a GGUF at once). The whole model comes
from the checkpoint, norms and embeddings too: tools fold scales into them.

Nothing of a checkpoint is run or unpickled, and nothing of it is guessed: a tensor that is missing, left
over or of another shape is refused, as is a config that describes another model than the parent's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faqbench.config import UserError
from faqbench.config.experiment import CheckpointSection
from faqbench.hub import bring_config, bring_weights, hub_errors, hub_or_local_copies, local_snapshot
from faqbench.layouts import NOT_COUNTED, PARTS, Stated, decode, grid_of, lacking, stated
from faqbench.models.inspection import listed
from faqbench.models.loading import config_settings
from faqbench.models.model import Model
from faqbench.models.sources import file_facts
from faqbench.models.tensors import (
    ALL,
    CONFIG,
    Held,
    Stored,
    TensorHeader,
    index_file,
    read_config,
    read_headers,
    weight_files,
)  # fmt: skip

PACKED_VERSION = 1  # raise it when the same files would be read as other numbers
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_OF_NO_FORWARD = {
    "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "compression_config",
    "tie_word_embeddings", "transformers_weights",
}  # fmt: skip
_GGUF_TYPE = re.compile(r"I?Q(\d)")


@dataclass(frozen=True, kw_only=True)
class PackedLinear:
    """How a linear lies in a checkpoint; group size -1 is one group per row."""

    bits: int
    group_size: int
    storage_bits: int


class Packed:
    """The tensors of a quantized checkpoint by the names of its parent's.

    Attributes:
        linears: that are quantized, by full name.
        stated: what its config says of most of them.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        linears: Mapping[str, PackedLinear],
        stated: Stated,
        read: Callable[[str, slice], Tensor],
    ) -> None:
        self.linears = linears
        self.stated = stated
        self._shapes = shapes
        self._read = read

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when there is no such tensor."""
        return self._shapes.get(name)

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """Return a tensor's rows; those of a packed weight are float32, and all of it is unpacked.

        Raises:
            UserError: for codes that do not make a weight of the parent's shape.
        """
        try:
            tensor = self._read(name, rows)
        except (ValueError, LookupError, RuntimeError) as error:
            raise UserError(f"{name} of the checkpoint cannot be unpacked: {error}.") from error
        if rows == ALL and tuple(tensor.shape) != self._shapes[name]:
            raise UserError(
                f"The checkpoint holds {name} as {list(tensor.shape)}, but its parent has "
                f"{list(self._shapes[name])}: it was made from another model."
            )
        return tensor


def packed_place(section: CheckpointSection) -> Path | None:
    """Return the folder, or the GGUF file, of a checkpoint; None for a hub's that is not here.

    Raises:
        UserError: when there is none where the section says.
    """
    if section.path is not None:
        place = Path(section.path).expanduser()
        if not place.exists():
            raise UserError(f"quant.checkpoint.path={section.path} is not there.")
        return place
    return local_snapshot(str(section.hub_id), section.revision, CONFIG)


def bring_packed(section: CheckpointSection, *, whole: bool = True) -> Path:
    """Return the same, brought from the hub where it is not here: all of it, or its config.json.

    Raises:
        UserError: when the hub does not give it.
    """
    place = packed_place(section)
    if place is not None and (section.path is not None or not whole or _is_whole(place)):
        return place
    try:
        with hub_or_local_copies():
            (bring_weights if whole else bring_config)(str(section.hub_id), section.revision)
    except hub_errors() as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"quant.checkpoint.hub_id={section.hub_id} could not be had from the hub ({first}); "
            "connect to a network, or set quant.checkpoint.path to a folder."
        ) from error
    place = packed_place(section)
    assert place is not None, "what was brought is there"
    return place


def _is_whole(place: Path) -> bool:
    files = packed_files(place)
    return len(files) > 1 and all(file.is_file() for file in files)


def packed_source(place: Path) -> list[list[object]]:
    """Return what tells one state of a checkpoint's files from another, large ones without reading them."""
    return file_facts(place if place.is_dir() else place.parent, packed_files(place))


def packed_files(place: Path) -> list[Path]:
    """Return the files that decide a checkpoint's weights."""
    if (file := _gguf_of(place)) is not None:
        return [file]
    index = index_file(place)
    return [place / CONFIG, *([] if index is None else [index]), *weight_files(place)]


def stated_of(place: Path) -> Stated:
    """Return what a checkpoint's own config says of its codes, no weight being read.

    Raises:
        UserError: one sentence for what is no quantized checkpoint, or not one that is read here.
    """
    if (file := _gguf_of(place)) is not None:
        return _stated_of_gguf(file)
    return _stated(place, _settings(place))


def open_packed(place: Path, parent: Model) -> Packed:
    """Open a checkpoint beside its parent.

    Raises:
        UserError: one sentence for anything that makes it another model than the parent, or unreadable.
    """
    shapes = {n: tuple(t.shape) for n, t in parent.module.named_parameters()}
    persistent = parent.module.state_dict()
    shapes |= {n: tuple(b.shape) for n, b in parent.module.named_buffers() if n in persistent}
    if (file := _gguf_of(place)) is not None:
        return _open_gguf(file, parent, shapes)
    settings = _settings(place)
    found = _stated(place, settings)
    _check_config(place, parent)
    headers = _headers(place)
    stored, first = Stored(headers), PARTS[found.layout][0]
    names = [name.removesuffix(f".{first}") for name in headers if name.endswith(f".{first}")]
    known = {name: [part for part in PARTS[found.layout] if f"{name}.{part}" in headers] for name in names}
    _check_tensors(place, found.layout, shapes, headers, known)

    def parts(name: str) -> dict[str, Tensor]:
        return {part: stored.read(f"{name}.{part}") for part in known[name]}

    def read(name: str, rows: slice) -> Tensor:
        linear = name.removesuffix(".weight")
        if name.endswith(".weight") and linear in known:
            return decode(found.layout, parts(linear), settings)[rows]
        return stored.read(name, rows)

    packed = Packed(shapes, _linears(found.layout, known, parts, shapes), found, read)
    _check_head(packed, stored, parent)
    return packed


def _headers(place: Path) -> dict[str, TensorHeader]:
    try:
        headers = read_headers(weight_files(place))
    except UserError as error:
        raise UserError(f"{place} could not be read: {error}.") from error
    if not headers:
        raise UserError(f"{place} has no weights in safetensors.")
    return headers


def _linears(
    layout: str,
    known: Iterable[str],
    parts: Callable[[str], Mapping[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, PackedLinear]:
    found = {}
    for name in known:
        tensors, (rows, columns) = parts(name), shapes[f"{name}.weight"]
        bits, group_size = grid_of(layout, tensors, (rows, columns))
        counted = sum(t.nbytes for part, t in tensors.items() if part not in NOT_COUNTED)
        found[name] = PackedLinear(bits=bits, group_size=group_size, storage_bits=8 * counted)
    return found


def _settings(place: Path) -> dict[str, Any]:
    """Return a folder's `quantization_config`.

    Raises:
        UserError: for a folder without one, with code to run, or with pickles.
    """
    if not (place / CONFIG).is_file():
        raise UserError(f"{place} is no checkpoint: it has neither config.json nor a GGUF file.")
    config = read_config(place)
    if config.get("auto_map"):
        raise UserError(
            f"{place} needs code of its own to be loaded (auto_map in config.json), which is not run for a "
            "checkpoint of another tool."
        )
    settings = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(settings, dict):
        raise UserError(
            f"The config.json of {place} says nothing of quantization (quantization_config); evaluate a "
            "model of full precision with quant=fp model.source=path."
        )
    if not any(place.glob("*.safetensors")):
        pickles = sorted(p.name for kind in _PICKLES for p in place.glob(kind))
        if pickles:
            raise UserError(
                f"{place} holds its weights as pickles ({listed(pickles)}), which can run code and are not "
                "read; save it as safetensors."
            )
    return settings


def _stated(place: Path, settings: Mapping[str, Any]) -> Stated:
    try:
        return stated(settings)
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        why = str(error) if type(error) is ValueError else f"its quantization_config lacks {error}"
        raise UserError(f"{place} is of a format that is not read here: {why}.") from error


def _check_tensors(
    place: Path,
    layout: str,
    shapes: Mapping[str, tuple[int, ...]],
    headers: Mapping[str, TensorHeader],
    known: Mapping[str, list[str]],
) -> None:
    """Refuse tensors that are missing, left over or of another shape."""
    of_linears = {f"{name}.{part}" for name, found in known.items() for part in found}
    missing = [f"{n}.{p}" for n, found in known.items() for p in lacking(layout, dict.fromkeys(found))]
    plain = {n for n in shapes if n.removesuffix(".weight") not in known}
    missing += sorted(plain - headers.keys())
    if missing:
        raise UserError(f"{place} lacks {len(missing)} tensors of its parent: {listed(missing)}.")
    for name in sorted(plain):
        if headers[name].shape != shapes[name]:
            raise UserError(
                f"{place} holds {name} as {list(headers[name].shape)}, but its parent has "
                f"{list(shapes[name])}: it was made from another model."
            )
    extra = headers.keys() - of_linears - plain
    extra = {n for n in extra if not n.endswith(("rotary_emb.inv_freq", "lm_head.weight"))}
    extra |= {f"{name}.weight" for name in known if f"{name}.weight" not in shapes}
    if extra:
        raise UserError(
            f"{place} holds {len(extra)} tensors that its parent does not have: {listed(extra)}."
        )


def _check_head(packed: Packed, stored: Stored, parent: Model) -> None:
    """Refuse an output head of its own where the parent's is the embedding."""
    head, embedding = (
        f"{part}.weight" for part in (parent.architecture.head, parent.architecture.embedding)
    )
    if packed.shape(head) is not None or stored.shape(head) is None:
        return
    if not torch.equal(stored.read(head), packed.read(embedding)):
        raise UserError(
            f"The checkpoint holds an output head ({head}) that differs from the embedding, and its parent "
            "has one tensor for both."
        )


def _check_config(place: Path, parent: Model) -> None:
    """Refuse a config that describes another forward than the parent's."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place)
    except (ValueError, LookupError, OSError, TypeError) as error:
        raise UserError(f"The config.json of {place} cannot be read: {error}.") from error
    ours, theirs = (
        {k: v for k, v in config_settings(c).items() if k not in _OF_NO_FORWARD}
        for c in (parent.module.config, config)
    )
    differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if differing:
        key = differing[0]
        raise UserError(
            f"The config.json of {place} has {key}={json.dumps(theirs.get(key))}, where its parent has "
            f"{json.dumps(ours.get(key))}: it was made from another model (model.parent)."
        )


def _gguf_of(place: Path) -> Path | None:
    """Return the GGUF file of a checkpoint; None for one of another kind."""
    if place.suffix == ".gguf" and place.is_file():
        return place
    found = sorted(place.glob("*.gguf")) if place.is_dir() else []
    if not found or any(place.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise UserError(
            f"{place} holds several GGUF files ({listed(p.name for p in found)}); name one of them."
        )
    return found[0]


def _gguf_reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, LookupError, OSError, TypeError) as error:
        raise UserError(f"{file} is no GGUF file, or damaged ({error}).") from error


def _stated_of_gguf(file: Path) -> Stated:
    kinds = [str(t.tensor_type.name) for t in _gguf_reader(file).tensors if ".blk." in f".{t.name}"]
    packed = [kind for kind in kinds if _GGUF_TYPE.match(kind)]
    if not packed:
        raise UserError(f"{file} holds no quantized block: its tensors are {listed(set(kinds))}.")
    kind = max(set(packed), key=packed.count)
    return Stated(
        layout="gguf",
        method=kind,
        bits=_gguf_bits(kind),
        group_size=32,
        symmetric=kind.endswith("_0"),
        made_by=None,
    )


def _gguf_bits(kind: str) -> int:
    match = _GGUF_TYPE.match(kind)
    assert match is not None
    return int(match[1])


def _open_gguf(file: Path, parent: Model, shapes: Mapping[str, tuple[int, ...]]) -> Packed:
    """Let transformers make the parent's model of a GGUF, and count its blocks' bits from the file."""
    from transformers import AutoModelForCausalLM

    stated = _stated_of_gguf(file)
    config = parent.module.config.__class__.from_dict(parent.module.config.to_dict())
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32
        )
    except (ValueError, LookupError, RuntimeError, OSError, TypeError) as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(f"{file} could not be read by transformers: {first}.") from error
    held = Held(dict(model.state_dict()))
    wrong = [n for n, shape in shapes.items() if held.shape(n) != shape]
    if wrong:
        raise UserError(f"{file} was made from another model: it has {listed(wrong)} in other shapes.")
    return Packed(shapes, _linears_of_gguf(file, parent), stated, held.read)


def _linears_of_gguf(file: Path, parent: Model) -> dict[str, PackedLinear]:
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

    reader = _gguf_reader(file)
    name = str(bytes(reader.fields["general.architecture"].parts[-1]), "utf-8")
    arch = next(key for key in MODEL_ARCH if MODEL_ARCH_NAMES[key] == name)
    names = get_tensor_name_map(arch, parent.architecture.n_blocks)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for linear in parent.architecture.linear_names():
        tensor = tensors.get(f"{names.get_name(linear)}.weight")
        if tensor is not None and _GGUF_TYPE.match(kind := str(tensor.tensor_type.name)):
            found[linear] = PackedLinear(
                bits=_gguf_bits(kind), group_size=32, storage_bits=8 * int(tensor.n_bytes)
            )
    return found
