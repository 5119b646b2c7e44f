"""Loading a model and its tokenizer: packaged, from the hub, from a folder, or of random weights.

One loader for all sources: each is turned into something that transformers' `from_pretrained` takes.
Only safetensors are read. Code that comes with a checkpoint runs only where the user says so
(`model.trust_remote_code=true`). A load is exact or refused: transformers would fill what it does not find
with random numbers, and leave out what it does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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
from faqbench.hub import bring_config, hub_errors, hub_or_local_copies
from faqbench.models.architecture import Architecture, architecture_of
from faqbench.models.forward import fingerprint_model
from faqbench.models.inspection import TIED_BUT_HEAD, inspect_model, lack_of, listed
from faqbench.models.random_model import byte_tokenizer, random_model
from faqbench.stages import Progress

_LIBRARY_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A causal language model, ready to run.

    Attributes:
        model: in evaluation mode, gradients off.
        tokenizer: its transformers tokenizer.
        architecture: where its blocks and linears are.
        fingerprint: sha256 over the names, shapes and bytes of all weights, in the dtype as loaded.
        warnings: sentences that a record must carry: what the files hold beside the model.
    """

    model: Any
    tokenizer: Any
    architecture: Architecture
    fingerprint: str
    warnings: tuple[str, ...] = ()

    @cached_property
    def model_fingerprint(self) -> str:
        """Sha256 over the weights and all settings of the forward; see `fingerprint_model`."""
        return fingerprint_model(self.fingerprint, self.model)


def load_model(
    section: ModelSection,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    fingerprint: str | None = None,
) -> LoadedModel:
    """Load weights, tokenizer and architecture.

    Args:
        section: where they come from.
        dtype: of the weights.
        device: where they go.
        progress: shows the loading.
        fingerprint: of these weights in this dtype, where it is known; it is taken otherwise.

    Raises:
        UserError: when the weights cannot be had or are not what the config asks for, or their
            architecture is not supported.
    """
    with progress.stage(f"load {section.name}", 1) as advance:
        warnings: tuple[str, ...] = ()
        if section.source == "random":
            inspect_model(section)
            model = random_model(section.random or {})
        else:
            model, warnings = _from_pretrained(section, _location(section, progress))
        architecture = architecture_of(model.config.to_dict())
        _check_layout(model, architecture)
        model = cast_parameters(model.to(device), dtype).eval().requires_grad_(False)
        fingerprint = fingerprint or fingerprint_weights(model)
        tokenizer = load_tokenizer(section, progress)
        advance()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        architecture=architecture,
        fingerprint=fingerprint,
        warnings=warnings,
    )


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


def cast_parameters(model: Any, dtype: torch.dtype) -> Any:
    """Put a model's weights into a dtype, in place, and return it; its buffers stay as they are.

    `model.to(dtype)` would also round the frequencies of rotary position embeddings, which transformers
    keeps in float32 when it loads a checkpoint in any dtype.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def fingerprint_weights(model: nn.Module) -> str:
    """Return a sha256 over the names, dtypes, shapes and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().cpu().view(-1)
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


def _from_pretrained(section: ModelSection, location: str) -> tuple[Any, tuple[str, ...]]:
    """Load a model whose every tensor comes from its files, and return it with warnings."""
    from transformers import AutoModelForCausalLM

    with _explained(section), _no_bars():
        if (
            section.source == "hub"
        ):  # so that a model is known for what it is before its weights come
            bring_config(location, section.revision)
        inspect_model(section)
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
    unexpected = sorted(report["unexpected_keys"])
    if not unexpected:
        return model, ()
    return model, (
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
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{start} its files hold {name} as {list(stored)}, but config.json makes it {list(wanted)}."
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
            raise UserError(
                f"model={section.name} could not be loaded: {_first_line(error)}."
            ) from error
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
