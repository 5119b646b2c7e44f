"""Where a model's decoder blocks are, and which of their linears share an input: data, not code.

A *role* names the linears of a block that read the same input: `qkv`, `o`, `gate_up` and `down`. The
inputs of qkv and gate_up are norms of the residual stream, where channel c of one block and channel c
of the next are the same coordinate; the inputs of o and down are private to their block.

Some families fuse several projections into one linear. Their yaml names the parts, in the order of their
rows (`fused: {self_attn.qkv_proj: [q, k, v]}`), and `self_attn.qkv_proj.v` then stands for some rows of
`self_attn.qkv_proj`, counted from the model's heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml
from torch import nn

from faqbench.config import UserError

_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OTHER_INPUTS = ("vision_config", "audio_config", "speech_config")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a linear's weight: all of them, or one part of a fused linear.

    Attributes:
        linear: module name relative to the block.
        start: the first row.
        stop: one past the last row; None for the end.
    """

    linear: str
    start: int = 0
    stop: int | None = None

    @property
    def cut(self) -> slice:
        """The slice of these rows."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class Role:
    """Linears of a block that share one input.

    Attributes:
        name: qkv, o, gate_up or down.
        linears: module names relative to the block, in the order of the forward pass.
        source: the module whose output, up to a factor per channel, is the input: a norm, or the linear
            (or the part of a fused one) whose rows an input scale would fold into.
        feeds: the rows whose output becomes the next role's input, up to what `source` says there.
        residual: whether the input is a norm of the residual stream.
        inspect: the module whose output error the reference search measures.
        adds_to: the module whose input is the residual stream that the role's output is added to;
            None for roles that do not write to the residual stream.
        unclipped: rows that the clip search leaves alone.
    """

    name: str
    linears: tuple[str, ...]
    source: str
    feeds: Rows
    residual: bool
    inspect: str
    adds_to: str | None = None
    unclipped: tuple[Rows, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The layout of one model.

    Attributes:
        family: the name of the family's yaml.
        embedding: module name of the token embedding.
        head: module name of the output head.
        final_norm: module name of the norm before it.
        blocks: module name of the list of decoder blocks.
        roles: in the order in which a block's forward pass reaches them.
        shapes: (out_features, in_features) of each linear, by its name relative to the block.
        n_blocks: how many decoder blocks there are.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: width of a head.
        hidden_size: width of the residual stream.
        vocab_size: rows of the embedding: the ids that the model knows.
        is_tied: whether embedding and head are one tensor.
        context: tokens that the model can look at; None where its config does not say.
        norm_offset: what a block's norms add to their weight before they multiply by it: Gemma's add 1.
    """

    family: str
    embedding: str
    head: str
    final_norm: str
    blocks: str
    roles: tuple[Role, ...]
    shapes: Mapping[str, tuple[int, int]]
    n_blocks: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    is_tied: bool
    context: int | None
    norm_offset: float = 0.0

    @property
    def is_grouped_query(self) -> bool:
        """Whether several query heads share a value head, so that o's input is wider than v's output."""
        return self.n_heads != self.n_kv_heads

    @property
    def writes_straight_to_residual(self) -> bool:
        """Whether o and down add to the residual stream as they are, with no norm between."""
        return all(role.adds_to is not None for role in self.roles if not role.residual)

    def role(self, name: str) -> Role:
        """Return a role by its name."""
        return next(role for role in self.roles if role.name == name)

    def block_modules(self, model: nn.Module) -> nn.ModuleList:
        """Return the decoder blocks of a loaded model."""
        blocks = model.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList) and len(blocks) == self.n_blocks
        return blocks

    def linear_names(self) -> list[str]:
        """Return the full names of all linears that a quantizer is responsible for."""
        return list(self.linear_shapes())

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (out_features, in_features) of these linears by full name, blocks in their order."""
        return {
            f"{self.blocks}.{index}.{linear}": self.shapes[linear]
            for index in range(self.n_blocks)
            for role in self.roles
            for linear in role.linears
        }

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shapes of all weight matrices by the names that a checkpoint has for them.

        A tied head is left out: there is the embedding's tensor in its place.
        """
        table = (self.vocab_size, self.hidden_size)
        shapes = {f"{self.embedding}.weight": table}
        shapes |= {f"{name}.weight": shape for name, shape in self.linear_shapes().items()}
        return shapes if self.is_tied else shapes | {f"{self.head}.weight": table}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture that the fields of a transformers config describe.

    Args:
        config: what config.json holds, or `to_dict()` of a transformers config.

    Raises:
        UserError: for a mixture of experts, a model of more than text, a model_type that no family
            describes, and sizes that make no model.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    _check_kind(config, text)
    family = next((f for f in _families() if text.get("model_type") in f["model_types"]), None)
    if family is None:
        known = sorted(t for f in _families() for t in f["model_types"])
        raise UserError(
            f"model_type '{text.get('model_type')}' has no family in faqbench/models/families; "
            f"known: {', '.join(known)}."
        )
    n_heads = _size(text, "num_attention_heads")
    n_kv_heads = _size(text, "num_key_value_heads", n_heads)
    hidden, width = _size(text, "hidden_size"), _size(text, "intermediate_size")
    head_dim = _size(text, "head_dim", family.get("head_dim") or hidden // n_heads or None)
    if n_heads % n_kv_heads:
        raise UserError(
            f"The model's configuration has num_attention_heads={n_heads}, which "
            f"num_key_value_heads={n_kv_heads} does not divide."
        )
    rows = n_kv_heads * head_dim
    sizes = {"q": n_heads * head_dim, "k": rows, "v": rows, "gate": width, "up": width}
    return Architecture(
        family=family["name"],
        embedding=family["embedding"],
        head=family["head"],
        final_norm=family["final_norm"],
        blocks=family["blocks"],
        roles=_roles(family, sizes),
        shapes=_shapes(family, sizes, hidden),
        n_blocks=_size(text, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        vocab_size=_size(text, "vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", family.get("is_tied", False))),
        context=text.get("max_position_embeddings"),
        norm_offset=family.get("norm_offset", 0.0),
    )


def _check_kind(config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Name a model for what it is where it is not a dense decoder of text alone."""
    kind = config.get("model_type")
    for key in _EXPERT_KEYS:
        n_experts = text.get(key) or config.get(key) or 0
        if isinstance(n_experts, int) and n_experts > 1:
            raise UserError(
                f"model_type '{kind}' is a mixture of experts ({key}={n_experts});"
                " faqbench quantizes dense decoders only, since experts see different tokens each."
            )
    others = [key.removesuffix("_config") for key in _OTHER_INPUTS if config.get(key)]
    if text is not config or others:
        beside = f" and {' and '.join(others)}" if others else ""
        raise UserError(
            f"model_type '{kind}' is a multimodal model (text{beside}); faqbench quantizes models of "
            "text alone: save its language model by itself, with a config.json of its own."
        )


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return one of a model's sizes.

    Raises:
        UserError: when it is missing, or is not a positive whole number.
    """
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"The model's configuration lacks {key}.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
            f"The model's configuration has {key}={value}, which is not a positive whole number."
        )
    return value


def _shapes(family: Mapping[str, Any], sizes: Mapping[str, int], hidden: int) -> dict[str, tuple[int, int]]:
    """Return (out_features, in_features) of the linears of a block, by their names relative to it.

    Args:
        family: the content of its yaml.
        sizes: rows of the projections that a block of any family has.
        hidden: width of the residual stream.
    """
    outs = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
    ins = {"o": sizes["q"], "down": sizes["up"]}
    shapes = {}
    for role, raw in family["roles"].items():
        for index, linear in enumerate(raw["linears"]):
            parts = family.get("fused", {}).get(linear) or outs.get(role, ())[index : index + 1]
            rows = sum(sizes[part] for part in parts) or hidden
            shapes[linear] = rows, ins.get(role, hidden)
    return shapes


def _roles(family: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[Role, ...]:
    """Return a family's roles.

    Args:
        family: the content of its yaml.
        sizes: rows of each part that a fused linear may have.
    """
    parts = {}
    for linear, names in family.get("fused", {}).items():
        start = 0
        for name in names:
            parts[f"{linear}.{name}"] = Rows(linear=linear, start=start, stop=start + sizes[name])
            start += sizes[name]
    raws = list(family["roles"].items())
    following = [raw for _, raw in (*raws[1:], raws[0])]
    roles = []
    for (name, raw), after in zip(raws, following, strict=True):
        feeds = parts.get(after["source"], Rows(linear=after["source"]))
        if feeds.linear not in raw["linears"]:  # through the residual stream and a norm
            (linear,) = raw["linears"]
            feeds = Rows(linear=linear)
        unclipped = [parts.get(rows, Rows(linear=rows)) for rows in raw.get("unclipped", ())]
        roles.append(
            Role(
                name=name,
                linears=tuple(raw["linears"]),
                source=raw["source"],
                feeds=feeds,
                residual=raw["residual"],
                inspect=raw["inspect"],
                adds_to=raw.get("adds_to"),
                unclipped=tuple(unclipped),
            )
        )
    return tuple(roles)


@cache
def _families() -> list[dict[str, Any]]:
    folder = resources.files("faqbench.models") / "families"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return [{"name": f.name.removesuffix(".yaml"), **yaml.safe_load(f.read_text())} for f in files]
