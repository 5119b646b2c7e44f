"""The one loop over a model's decoder blocks: a block arrives, its passengers work on it, and it goes.

    walk_blocks([a, b, c])      block 0: a, b, c;   block 1: a, b, c;   ...

Whatever looks at a model block by block is a passenger: what observes activations, what quantizes, what
scores. Those of one view share its blocks, so each block is read once however many they are. Those of
several views (a quantized model, and the full precision model that it is compared with) go side by side,
one block after the other.

While a block is worked on, one thread reads the next, where the budget has room for a block more. Nothing
that a passenger sees depends on it. Gradients are off, but may be taken inside a block.

What a streamed block has left free between other pieces goes back to the system with it: weights that one
thread took and another gave back would add up from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import nn

from faqbench.models.model import Model
from faqbench.processes import give_back


class Passenger(Protocol):
    """Somebody who works on every block of a view, in turn."""

    @property
    def model(self) -> Model:
        """The view."""

    def work(self, index: int, block: nn.Module) -> None:
        """Work on a block, whose weights are there meanwhile."""


@torch.no_grad()
def walk_blocks(passengers: Sequence[Passenger], advance: Callable[[], None] = lambda: None) -> None:
    """Take all passengers past every block.

    Args:
        passengers: at least one; views of models of equal depth.
        advance: told of every block that all of them have passed.
    """
    views = list(dict.fromkeys(passenger.model for passenger in passengers))
    n_blocks = views[0].architecture.n_blocks
    stops = [(view, index) for index in range(n_blocks) for view in views]
    # One that is not needed never starts: other code may fork where no thread runs.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as reader:
        try:
            for (view, index), following in zip(stops, [*stops[1:], None], strict=True):
                with view.block(index) as block:
                    if following is not None:
                        following[0].read_ahead(following[1], reader)
                    for passenger in passengers:
                        if passenger.model is view:
                            passenger.work(index, block)
                if view is views[-1]:
                    if not view.is_resident:
                        give_back()
                    advance()
        finally:
            for view in views:
                view.forget_ahead()
