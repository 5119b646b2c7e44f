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
        blocks: module name of the list of decoder blocks.
        roles: in the order in which a block's forward pass reaches them.
        n_blocks: how many decoder blocks there are.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: width of a head.
    """

    family: str
    blocks: str
    roles: tuple[Role, ...]
    n_blocks: int
    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def is_grouped_query(self) -> bool:
        """Whether several query heads share a value head, so that o's input is wider than v's output."""
        return self.n_heads != self.n_kv_heads

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
        return [
            f"{self.blocks}.{index}.{linear}"
            for index in range(self.n_blocks)
            for role in self.roles
            for linear in role.linears
        ]


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a transformers config.

    Raises:
        UserError: for a mixture of experts, or a model_type that no family describes.
    """
    for key in _EXPERT_KEYS:
        if (getattr(config, key, None) or 0) > 1:
            raise UserError(
                f"model_type '{config.model_type}' is a mixture of experts ({key}={getattr(config, key)});"
                " faqbench quantizes dense decoders only, since experts see different tokens each."
            )
    families = _families()
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    family = next((f for f in families if text.model_type in f["model_types"]), None)
    if family is None:
        known = sorted(t for f in families for t in f["model_types"])
        raise UserError(
            f"model_type '{text.model_type}' has no family in faqbench/models/families; "
            f"known: {', '.join(known)}."
        )
    n_heads = text.num_attention_heads
    n_kv_heads = getattr(text, "num_key_value_heads", None) or n_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // n_heads
    rows, width = n_kv_heads * head_dim, text.intermediate_size
    sizes = {"q": n_heads * head_dim, "k": rows, "v": rows, "gate": width, "up": width}
    return Architecture(
        family=family["name"],
        blocks=family["blocks"],
        roles=_roles(family, sizes),
        n_blocks=text.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
    )


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
