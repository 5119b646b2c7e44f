"""FAQ's importance: a blend of this block's activations with a preview of the blocks after it.

Legend: a_i [in] mean|x| of one role's input in block i; J the window; gamma the preview factor.

    p_i = sum_{j=1..J'} w_j a_{i+j}      J' = min(J, blocks after i); weights w sum to 1
    f_i = gamma a_i + (1 - gamma) p_i    the last block has nothing to preview: f_i = a_i

f takes the place of a in AWQ's search; everything else, the loss included, stays the current block's
own. gamma = 1 or J = 0 returns a itself, so FAQ is then AWQ to the bit.

`source` says what the vectors a_{i+j} are. `same_role`, as above, takes the same role's input j blocks
later: channel for channel that is the same coordinate for qkv and gate_up, whose inputs lie in the
residual stream, but not for o and down. `next_linear` follows the data instead, and every vector it
gives belongs to the channels of this role's own input. With the roles in one chain,

    qkv -v-> o -o-> gate_up -up-> down -down-> qkv of the next block -v-> ...

and V_k [out, in] the absolute weights of the linear that carries role k of the chain to role k + 1 (of
qkv only v, of gate_up only up: the others reach the next input through a nonlinear gate or softmax), the
j-th vector of role r is mean|x| of the j-th role after it, brought back through j linears:

    b_j = a_{r+j} V_{r+j-1} / out_{r+j-1} ... V_r / out_r       a row vector [in of role r]

An input channel is then large when it feeds outputs that are large where they are read next. One step of
the window is one linear, not one block; down of the last block has nothing to preview. Under
grouped-query attention o's vector is averaged over the query heads that share a value head; norms on
the way are left out, since their gain is already part of the mean|x| behind them. Means over outputs
shrink with every step: blend them with `norm=mean` or `norm=max`, which bring them to a_i's own size.

`consumers` goes the same way with what the readers make of their inputs in the place of a_{r+j}:

    c_{r+j} = a_{r+j} u_{r+j}            u_k [in of role k] the root mean square of the columns of all the
                                         linears of role k

A channel that is large where it is read, but that its readers' weights hardly take up, counts little.

`weights=error` takes the share of each vector from the error that rounding makes where it is read:

    w_j = e_{i+j}    e_k = sum over the linears of role k, with E the change by rounding to nearest, of
                     sum_rc E_rc² a_c² over sum_rc W_rc² a_c²: the relative output error of inputs that
                     are taken as uncorrelated, with a² for their second moments

`stream=quantized` shows what the blocks before this one, which are quantized by now, do to later inputs:

    a_k -> a_k m̂_k / m_k    m_k mean|x| of the sample's tokens (`sample.py`) that enter this block in full
                            precision, m̂_k of those that the quantized blocks give, both sent on through
                            full precision blocks to role k; in the first block the two are equal

Reference: FAQ, arXiv 2602.02538 (window-wise preview, soft aggregation). The formulas above are our
reading of it, and `next_linear`, `consumers`, `weights=error` and `stream=quantized` are ours altogether:
the paper's body was not available to us.

The means of all blocks are there from the full precision pass, and so are the weights (`Lookahead`). What
the quantized blocks do to later inputs is measured when a block arrives, on a sample of both streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.config.experiment import PreviewSection, QuantSection
from faqbench.models import Architecture, Model, Role
from faqbench.quantization.activations import ActivationStore
from faqbench.quantization.grid import Grid, fake_quantize

_LEAST_ERROR = 1e-12  # where nothing later errs, all count alike

# How the vectors of the window are weighted, before normalisation; j counts from 1, the next one, and e is
# the error where it is read.
WEIGHTS: dict[str, Callable[[int, float], float]] = {
    "uniform": lambda j, e: 1.0,
    "linear": lambda j, e: 1.0 / j,
    "geometric": lambda j, e: 0.5**j,
    "error": lambda j, e: max(e, _LEAST_ERROR),
}

# What a block's vector is divided by before blending; the result is brought back to a_i's own size.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda a: torch.ones((), dtype=a.dtype, device=a.device),
    "mean": lambda a: a.mean(),
    "max": lambda a: a.max(),
}


def _convex(current: Tensor, preview: Tensor, gamma: float) -> Tensor:
    return gamma * current + (1 - gamma) * preview


def _geometric(current: Tensor, preview: Tensor, gamma: float) -> Tensor:
    return current.pow(gamma) * preview.pow(1 - gamma)


def _max(current: Tensor, preview: Tensor, gamma: float) -> Tensor:
    return torch.maximum(current, (1 - gamma) * preview)


FUSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "convex": _convex,
    "geometric": _geometric,
    "max": _max,
}


@dataclass(frozen=True, kw_only=True)
class Later:
    """What a preview reads of what comes after a role, nearest first.

    Attributes:
        vectors: [in_features] each.
        errors: of rounding where each is read; empty where the preview does not weigh by them.
    """

    vectors: Sequence[Tensor] = ()
    errors: Sequence[float] = ()


def current_importance(current: Tensor, later: Later, role: Role, quant: QuantSection) -> Tensor:
    """Return AWQ's importance [in_features] of one role: mean|x| of this block and nothing else.

    The value `scale=awq` of the table in `config/method.py`.
    """
    del later, role, quant
    return current


def blended_importance(current: Tensor, later: Later, role: Role, quant: QuantSection) -> Tensor:
    """Return FAQ's importance [in_features] of one role, AWQ's for a role that `preview.roles` leaves out.

    The value `scale=faq` of the table in `config/method.py`.
    """
    previews = quant.preview.roles == "all" or role.residual
    return preview_importance(current, later, quant.preview) if previews else current


def preview_importance(current: Tensor, later: Later, preview: PreviewSection) -> Tensor:
    """Return FAQ's importance f [in_features] of one role of one block.

    Args:
        current: [in_features], mean|x| of this block.
        later: only the first `preview.window` vectors are read; without any it is `current` itself.
        preview: window, gamma, weights, norm and fuse.
    """
    window = later.vectors[: preview.window]
    if not window or preview.gamma == 1.0:
        return current
    errors = later.errors[: len(window)] or [0.0] * len(window)
    weights = [WEIGHTS[preview.weights](j, e) for j, e in enumerate(errors, start=1)]
    norm = NORMS[preview.norm]
    size = norm(current)
    blend = torch.zeros_like(current)
    for weight, vector in zip(weights, window, strict=True):
        blend += weight / sum(weights) * _rescaled(vector, norm(vector), size)
    return FUSES[preview.fuse](current, blend, preview.gamma)


def pull_back(importance: Tensor, weight: Tensor) -> Tensor:
    """Return what the importance of a linear's outputs says of its inputs, a |W| / out_features.

    Args:
        importance: [out_features], non-negative.
        weight: [out_features, in_features].
    """
    return importance.float() @ weight.float().abs() / len(weight)


def _rescaled(vector: Tensor, size: Tensor, target: Tensor) -> Tensor:
    """Bring a vector to another's size; a vector of zeros stays one."""
    return vector * torch.where(size > 0, target / size, torch.ones_like(size))


# mean|x| of the quantized stream over that of full precision, by role, of a block and those after it.
Drift = Sequence[Mapping[str, Tensor]]


class Lookahead:
    """Looks ahead from the roles of one block after another."""

    def __init__(
        self, store: ActivationStore, model: Model, grids: Mapping[str, Grid], preview: PreviewSection
    ) -> None:
        """Look nowhere yet.

        Args:
            store: of the full precision pass; its means are read.
            model: in full precision.
            grids: of the linears that are quantized, by full name.
            preview: window, source, weights and stream.
        """
        self._store = store
        self._model = model
        self._grids = grids
        self._preview = preview
        self._errors: dict[tuple[int, str], float] = {}

    def later(self, role: Role, block: int, drift: Drift = ()) -> Later:
        """Return what a role's preview blends, nearest first; at most `window` of it.

        Args:
            role: the role, not yet quantized.
            block: index of its block.
            drift: of this block and those that the window reaches; empty where the preview is of the full
                precision stream.
        """
        places = self._places(role, block)
        vectors = []
        for index, reader in places:
            vector = self._store.mean_abs(index, reader.name)
            if drift:
                vector = vector * drift[index - block][reader.name]
            if self._preview.source == "consumers":
                vector = vector * self._uptake(index, reader)
            if self._preview.source != "same_role":
                vector = self._brought_back(vector, (index, reader), (block, role))
            vectors.append(vector)
        weighs = self._preview.weights == "error"
        return Later(vectors=vectors, errors=[self._error(*place) for place in places] if weighs else ())

    def _places(self, role: Role, block: int) -> list[tuple[int, Role]]:
        """Return the blocks and the roles that are looked at."""
        architecture, roles = self._model.architecture, self._model.architecture.roles
        window = self._preview.window
        if self._preview.source == "same_role":
            end = min(block + 1 + window, architecture.n_blocks)
            return [(index, role) for index in range(block + 1, end)]
        start = _step(architecture, block, role)
        end = min(start + window, architecture.n_blocks * len(roles) - 1)
        return [(n // len(roles), roles[n % len(roles)]) for n in range(start + 1, end + 1)]

    def _brought_back(self, vector: Tensor, reader: tuple[int, Role], to: tuple[int, Role]) -> Tensor:
        """Bring the importance of one role's input back to that of an earlier one, linear by linear."""
        architecture = self._model.architecture
        roles = architecture.roles
        first = _step(architecture, *to)
        for step in reversed(range(first, _step(architecture, *reader))):
            vector = self._through(vector, roles[step % len(roles)], step // len(roles))
        return vector

    def _through(self, vector: Tensor, role: Role, block: int) -> Tensor:
        """Bring the importance of the next role's input back to this role's input."""
        architecture = self._model.architecture
        weight = self._weight(block, role.feeds.linear)[role.feeds.cut]
        if len(vector) != len(weight):  # o's input: a value head serves several query heads
            heads = vector.view(architecture.n_kv_heads, -1, architecture.head_dim)
            vector = heads.mean(dim=1).flatten()
        return pull_back(vector, weight)

    def _uptake(self, block: int, role: Role) -> Tensor:
        """Return u [in_features] of a role: how much of each channel its linears take up."""
        weights = [self._weight(block, name).float() for name in role.linears]
        return torch.cat(weights).square().mean(dim=0).sqrt()

    def _error(self, block: int, role: Role) -> float:
        """Return e of a role, over those of its linears that are quantized; 0 where none is."""
        errors = self._errors.get((block, role.name))
        if errors is not None:
            return errors
        moments = self._store.mean_abs(block, role.name).square()
        error = size = 0.0
        for name in role.linears:
            grid = self._grids.get(self._full_name(block, name))
            if grid is not None:
                weight = self._weight(block, name).float()
                change = fake_quantize(weight, grid) - weight
                error += float((change.square() @ moments).sum())
                size += float((weight.square() @ moments).sum())
        self._errors[block, role.name] = error / size if size > 0 else 0.0
        return self._errors[block, role.name]

    def _weight(self, block: int, linear: str) -> Tensor:
        return self._model.weight(f"{self._full_name(block, linear)}.weight")

    def _full_name(self, block: int, linear: str) -> str:
        return f"{self._model.architecture.blocks}.{block}.{linear}"


def n_window_cuts(architecture: Architecture, preview: PreviewSection) -> int:
    """Return in how many blocks some role has fewer vectors to preview than the window asks for."""
    return min(n_blocks_ahead(architecture, preview), architecture.n_blocks)


def n_blocks_ahead(architecture: Architecture, preview: PreviewSection) -> int:
    """Return how many blocks after its own a preview reaches."""
    per_block = 1 if preview.source == "same_role" else len(architecture.roles)
    return -(-preview.window // per_block)


def _step(architecture: Architecture, block: int, role: Role) -> int:
    """Return the place of a role in the chain of all roles of all blocks."""
    return block * len(architecture.roles) + architecture.roles.index(role)
