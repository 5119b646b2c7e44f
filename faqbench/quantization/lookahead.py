"""What FAQ's preview reads: vectors of later blocks or linears, from the full precision pass.

`preview.py` has the formulas. Here is where the vectors come from: the means that an `ActivationStore`
keeps of all blocks, and for `source=next_linear` the full precision weights between.
"""

from __future__ import annotations

from torch import Tensor

from faqbench.config.experiment import PreviewSection
from faqbench.models import Architecture, Model, Role
from faqbench.quantization.activations import ActivationStore
from faqbench.quantization.preview import pull_back


def later_statistics(
    role: Role,
    block: int,
    store: ActivationStore,
    architecture: Architecture,
    model: Model,
    preview: PreviewSection,
) -> list[Tensor]:
    """Return the vectors [in_features] that a role's preview blends, nearest first; at most `window`.

    Args:
        role: the role, not yet quantized.
        block: index of its block.
        store: of the full precision pass.
        architecture: the roles in the order of the data's way through a block.
        model: in full precision.
        preview: source and window.
    """
    if preview.source == "same_role":
        end = min(block + 1 + preview.window, architecture.n_blocks)
        return [store.mean_abs(j, role.name) for j in range(block + 1, end)]
    roles = architecture.roles
    start = block * len(roles) + roles.index(role)
    end = min(start + preview.window, architecture.n_blocks * len(roles) - 1)
    vectors = []
    for last in range(start + 1, end + 1):
        vector = store.mean_abs(last // len(roles), roles[last % len(roles)].name)
        for step in range(last - 1, start - 1, -1):
            carrier = roles[step % len(roles)]
            vector = _through(vector, carrier, step // len(roles), model)
        vectors.append(vector)
    return vectors


def n_window_cuts(architecture: Architecture, preview: PreviewSection) -> int:
    """Return in how many blocks some role has fewer vectors to preview than the window asks for."""
    per_block = 1 if preview.source == "same_role" else len(architecture.roles)
    return min(-(-preview.window // per_block), architecture.n_blocks)


def _through(vector: Tensor, role: Role, block: int, model: Model) -> Tensor:
    """Bring a statistic of the next role's input back to this role's input."""
    architecture = model.architecture
    weight = model.weight(f"{architecture.blocks}.{block}.{role.feeds.linear}.weight")
    weight = weight[role.feeds.cut]
    if len(vector) != len(weight):  # o's input: a value head serves several query heads
        heads = vector.view(architecture.n_kv_heads, -1, architecture.head_dim)
        vector = heads.mean(dim=1).flatten()
    return pull_back(vector, weight)
