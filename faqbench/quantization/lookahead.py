"""What FAQ's preview reads of later blocks or linears; `preview.py` has the formulas.

The means of all blocks are there from the full precision pass, and so are the weights. What the quantized
blocks do to later inputs is measured when a block arrives, on a sample of both streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from faqbench.config.experiment import PreviewSection
from faqbench.models import Architecture, Model, Role
from faqbench.quantization.activations import ActivationStore
from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.preview import Later, pull_back

# mean|x| of the quantized stream over that of full precision, by role, of a block and those after it.
Drift = Sequence[Mapping[str, Tensor]]


class Lookahead:
    """Looks ahead from the roles of one block after another."""

    def __init__(
        self,
        store: ActivationStore,
        model: Model,
        grids: Mapping[str, Grid],
        preview: PreviewSection,
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
        return Later(
            vectors=vectors, errors=[self._error(*place) for place in places] if weighs else ()
        )

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

    def _brought_back(
        self, vector: Tensor, reader: tuple[int, Role], to: tuple[int, Role]
    ) -> Tensor:
        """Bring a statistic of one role's input back to that of an earlier one, linear by linear."""
        architecture = self._model.architecture
        roles = architecture.roles
        first = _step(architecture, *to)
        for step in reversed(range(first, _step(architecture, *reader))):
            vector = self._through(vector, roles[step % len(roles)], step // len(roles))
        return vector

    def _through(self, vector: Tensor, role: Role, block: int) -> Tensor:
        """Bring a statistic of the next role's input back to this role's input."""
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
        known = self._errors.get((block, role.name))
        if known is not None:
            return known
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
