"""Loading a model and its tokenizer: packaged, from the hub, from a folder, or of random weights.

A model is opened, not read: see `model.py`. Its skeleton is what its config describes, and its tensors are
read from its files when they are used. Only safetensors are read. Code that comes with a checkpoint runs
only where the user says so (`model.trust_remote_code=true`). A load is exact or refused: transformers would
fill what it does not find with random numbers, and leave out what it does not know.

Equal weights are another model under other rope scaling, another window or another soft cap; so what
stands for a model in keys, records and comparisons is the hash of its weights and of its configuration
(`fingerprint_model`). The configuration is canonical: defaults are filled in by transformers, and what
changes no output (names, labels, the dtype that a checkpoint was saved in, how weights were drawn before
training) is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from faqbench.assets import packaged_model
from faqbench.config import UserError
from faqbench.config.experiment import ModelSection
from faqbench.hub import bring_config, bring_weights, hub_errors, hub_or_local_copies
from faqbench.models.architecture import Architecture, architecture_of
from faqbench.models.inspection import TIED_BUT_HEAD, inspect_model, lack_of, listed
from faqbench.models.memory import Budget
from faqbench.models.model import Model, skeleton_of, without_weights
from faqbench.models.sources import byte_tokenizer, checkpoint_folder, random_model
from faqbench.models.tensors import CONFIG, Held, Stored, Tensors, read_headers, weight_files
from faqbench.stages import Progress, hash_json

_COMPUTED = "rotary_emb.inv_freq"  # a buffer that older checkpoints hold, and that is computed
_LIBRARY_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A causal language model, ready to run.

    Attributes:
        view: of its weights as they were found.
        tokenizer: its transformers tokenizer.
        fingerprint: sha256 over the names, shapes and bytes of all weights, in the dtype of the view.
        warnings: sentences that a record must carry: what the files hold beside the model.
    """

    view: Model
    tokenizer: Any
    fingerprint: str
    warnings: tuple[str, ...] = ()

    @property
    def model(self) -> Any:
        """The model of transformers, its weights there when it runs."""
        return self.view.fill().module

    @property
    def architecture(self) -> Architecture:
        """Where its blocks and linears are."""
        return self.view.architecture

    @cached_property
    def model_fingerprint(self) -> str:
        """Sha256 over the weights and all settings of the forward; see `fingerprint_model`."""
        return fingerprint_model(self.fingerprint, self.view.module)


def load_model(
    section: ModelSection,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    fingerprint: str | None = None,
    budget: Budget | None = None,
) -> LoadedModel:
    """Open weights, tokenizer and architecture.

    Args:
        section: where they come from.
        dtype: of the weights.
        device: where they go.
        progress: shows the loading.
        fingerprint: of these weights in this dtype, where it is known; it is taken otherwise.
        budget: of memory; None lets the model take what it needs.

    Raises:
        UserError: when the weights cannot be had or are not what the config asks for, their
            architecture is not supported, or one block of them does not fit the budget.
    """
    with progress.activity(f"load {section.name}", 1) as advance:
        warnings: tuple[str, ...] = ()
        if section.source == "random":
            inspect_model(section)
            skeleton, tensors = _in_memory(random_model(section.random or {}))
        else:
            skeleton, tensors, warnings = _open(section, _location(section, progress))
        architecture = architecture_of(skeleton.config.to_dict())
        _check_layout(skeleton, architecture)
        is_resident = budget is None or budget.holds(architecture, dtype)
        view = Model(
            skeleton,
            architecture,
            tensors,
            (dtype,),
            device,
            is_resident=is_resident,
            room=None if budget is None else budget.room(architecture, dtype),
        )
        fingerprint = fingerprint or fingerprint_weights(view)
        tokenizer = load_tokenizer(section, progress)
        advance()
    return LoadedModel(view=view, tokenizer=tokenizer, fingerprint=fingerprint, warnings=warnings)


def load_tokenizer(section: ModelSection, progress: Progress) -> Any:
    """Load the tokenizer alone, without the model's weights."""
    if section.tokenizer == "bytes":
        return byte_tokenizer()
    from transformers import AutoTokenizer

    location = section.tokenizer or _location(section, progress)
    with _explained(section):
        return AutoTokenizer.from_pretrained(
            location, revision=section.revision, trust_remote_code=section.trust_remote_code
        )


def fingerprint_weights(view: Model) -> str:
    """Return a sha256 over the names, dtypes, shapes and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(view.fill().module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for piece in view.pieces(name) if tensor.is_meta else [tensor]:
            flat = piece.detach().contiguous().cpu().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _location(section: ModelSection, progress: Progress) -> str:
    """Return the folder or the hub id that from_pretrained takes."""
    if section.source == "packaged":
        assert section.asset is not None
        return str(packaged_model(section.asset, progress))
    if section.source == "path":
        assert section.path is not None
        return str(Path(section.path).expanduser())
    assert section.hub_id is not None
    return section.hub_id


def _open(section: ModelSection, location: str) -> tuple[Any, Tensors, tuple[str, ...]]:
    """Return a model's skeleton, its tensors and warnings; its files have every tensor that it needs.

    Files whose tensors have the skeleton's names and shapes are read as they lie there. Of others, and
    of a model whose own code does the loading, transformers makes a model in memory.
    """
    with _explained(section):
        if section.source == "hub":
            # So that a model is known for what it is before its weights come.
            bring_config(location, section.revision)
            inspect_model(section)
            bring_weights(location, section.revision)
    inspect_model(section)
    if section.trust_remote_code:
        return _converted(section, location)
    folder = checkpoint_folder(section)
    assert folder is not None, "a model that was inspected has a folder"
    tensors = Stored(headers := read_headers(weight_files(folder)))
    with _explained(section):
        skeleton = _skeleton(folder)
    needed = _needed(skeleton)
    if any(tensors.shape(n) != s for n, s in needed.items()):
        return _converted(section, location)
    ignored = re.compile("|".join(skeleton._keys_to_ignore_on_load_unexpected or ()) or "(?!)")
    unexpected = headers.keys() - skeleton.state_dict().keys()
    unexpected = {n for n in unexpected if not (n.endswith(_COMPUTED) or ignored.search(n))}
    return skeleton, tensors, _warnings(section, unexpected)


def _skeleton(folder: Path) -> Any:
    """Return the model that a folder's config describes, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    with without_weights(), torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    except OSError:  # it has none of its own
        model.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name=CONFIG, _from_model_config=True
        )
    return model.eval()


def _needed(skeleton: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a model is made of, tied ones once."""
    parameters = dict(skeleton.named_parameters())
    persistent = {k: b for k, b in skeleton.named_buffers() if k in skeleton.state_dict()}
    return {name: tuple(t.shape) for name, t in (parameters | persistent).items()}


def _in_memory(model: Any) -> tuple[Any, Tensors]:
    model.eval().requires_grad_(False)
    return skeleton_of(model), Held(dict(model.state_dict()))


def _converted(section: ModelSection, location: str) -> tuple[Any, Tensors, tuple[str, ...]]:
    """Let transformers make a model of its files, in memory."""
    from transformers import AutoModelForCausalLM

    with _explained(section), _no_bars():
        # float32 first: quantizers work on float32 weights, and the cast to `dtype` is ours to record.
        model, report = AutoModelForCausalLM.from_pretrained(
            location,
            revision=section.revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=section.trust_remote_code,
            ignore_mismatched_sizes=True,  # the report names them
            output_loading_info=True,
        )
        _check_exact(section, model, report)
    return *_in_memory(model), _warnings(section, report["unexpected_keys"])


def _warnings(section: ModelSection, unexpected: Iterable[str]) -> tuple[str, ...]:
    unexpected = sorted(unexpected)
    if not unexpected:
        return ()
    return (
        f"The files of model={section.name} hold tensors that the model does not have, and that were left "
        f"out: {listed(unexpected)}.",
    )


def _check_exact(section: ModelSection, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse a model with a tensor that its files do not have, or have in another shape.

    Raises:
        UserError: naming the tensors.
    """
    start = f"model={section.name} could not be loaded:"
    missing = sorted(report["missing_keys"])
    if missing:
        lack = lack_of(missing, len(model.state_dict()), sorted(report["unexpected_keys"]))
        raise UserError(f"{start} {lack}.")
    for name, stored, configured in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{start} its files hold {name} as {list(stored)}, but config.json makes it {list(configured)}."
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.get_text_config().tie_word_embeddings and head.weight is not embedding.weight:
        raise UserError(f"{start} {TIED_BUT_HEAD}.")


@contextmanager
def _explained(section: ModelSection) -> Iterator[None]:
    """Turn what transformers raises for missing or unreadable models into one sentence."""
    try:
        with hub_or_local_copies() if section.source == "hub" else nullcontext():
            yield
    except UserError:
        raise
    except _LIBRARY_ERRORS as error:
        if "allocate memory" in str(error):
            raise  # no mistake in the files, but too little memory for them
        # What transformers raises for a config or a tokenizer that it cannot make sense of.
        raise UserError(
            f"model={section.name} could not be loaded: transformers stopped with "
            f"{type(error).__name__}: {_first_line(error)}."
        ) from error
    except _load_errors() as error:
        if section.source != "hub":
            raise UserError(f"model={section.name} could not be loaded: {_first_line(error)}.") from error
        raise UserError(
            f"model={section.name} needs '{section.hub_id}' from the Hugging Face hub, which could not "
            f"be reached or did not give it ({_first_line(error)}); connect to a network, log in if the "
            "model is gated, or set model.source=path model.path=FOLDER."
        ) from error


def _load_errors() -> tuple[type[Exception], ...]:
    """Return what is raised for weights that are missing, damaged or out of reach."""
    damaged: type[Exception] = SafetensorError
    return (damaged, *hub_errors())


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' own progress bars out of ours."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _check_layout(model: nn.Module, architecture: Architecture) -> None:
    modules = dict(model.named_modules())
    for name in architecture.linear_names():
        if not isinstance(modules.get(name), nn.Linear):
            raise UserError(
                f"The model does not have the shape of family '{architecture.family}': "
                f"{name} is not a linear."
            )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")[:200]


# Of a configuration or a generation configuration, at any depth.
_NO_EFFECT = {
    "_commit_hash", "_from_model_config", "_name_or_path", "architectures", "auto_map",
    "chunk_size_feed_forward", "dtype", "id2label", "initializer_range", "label2id",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


def fingerprint_model(weights: str, model: Any) -> str:
    """Return a sha256 over everything that a model's outputs depend on, its dtype and device aside.

    Args:
        weights: the fingerprint of its weights.
        model: as loaded by transformers.
    """
    return hash_json({"weights": weights, "forward": forward_settings(model)})


def forward_settings(model: Any) -> dict[str, Any]:
    """Return the canonical configuration of a model's forward and of its generation, as JSON."""
    generation = getattr(model, "generation_config", None)
    return {
        "class": type(model).__name__,
        "attention": model.config._attn_implementation,
        "config": config_settings(model.config),
        "generation": None if generation is None else _canonical(generation.to_dict()),
    }


def config_settings(config: Any) -> dict[str, Any]:
    """Return what a configuration of transformers says of the forward, as JSON."""
    settings: dict[str, Any] = _canonical(config.to_dict())
    return settings


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(k): v for k, v in value.items() if k not in _NO_EFFECT and v is not None}
        return {k: _canonical(v) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
