"""What a model computes besides its weights: its configuration, as transformers read it.

Equal weights are another model under other rope scaling, another window or another soft cap; so what
stands for a model in keys, records and comparisons is the hash of both (`fingerprint_model`). The
configuration is canonical: defaults are filled in by transformers, and what changes no output (names,
labels, the dtype that a checkpoint was saved in, how weights were drawn before training) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faqbench.stages import hash_json

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
