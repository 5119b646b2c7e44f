"""Walking a model block by block.

A `BlockStream` holds the hidden states that enter one decoder block, for all calibration windows, and
moves them through the blocks one at a time. Nothing but the current block's inputs is ever kept, so a
walk needs the memory of one set of hidden states, whatever the depth of the model; and it asks the model
for one block at a time, so that blocks may come from anywhere.

What a block needs beside its hidden states (rotary embeddings, masks; in some families they differ from
block to block) is taken from the model's own forward pass, run once with every block replaced by a
recorder that returns its input. The key-value cache is off: a live cache captured here would silently
corrupt every later call of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from faqbench.models.architecture import Architecture
from faqbench.models.model import Model
from faqbench.models.prepared import prepared_input
from faqbench.models.shelf import Shelf, n_bytes
from faqbench.models.walk import Passenger, walk_blocks

Inputs = Callable[[], Mapping[str, Any]]


class _Recorder(nn.Module):
    """Stands in for a block: keeps what it was called with, and returns that or what it is given."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Model code may read plain attributes of its blocks, such as the kind of attention.
        plain = {k: v for k, v in vars(block).items() if not k.startswith("_") and k != "training"}
        self.__dict__.update(plain)
        self.hidden: Tensor | None = None
        self.kwargs: dict[str, Any] = {}
        self.given: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        assert not args, "decoder blocks are called with keywords in transformers 5"
        self.hidden, self.kwargs = hidden_states, kwargs
        return hidden_states if self.given is None else self.given


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments that a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Leaves a block's forward at the module whose input was wanted."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@dataclass
class BlockStream:
    """The hidden states on their way through the blocks.

    Attributes:
        hidden: [n_samples, seq_len, hidden_size], the input of block `index`.
        kwargs: per block, the keyword arguments of its forward.
        batch_size: how many windows go through a block together.
        shelf: where `hidden` lies.
        index: the block that `hidden` is the input of.
    """

    hidden: Tensor
    kwargs: tuple[dict[str, Any], ...]
    batch_size: int
    shelf: Shelf
    index: int = 0

    def batches(self, block: nn.Module) -> Iterator[tuple[slice, Tensor]]:
        """Run the current block over all windows, yielding (rows, output) batch by batch."""
        for start in range(0, len(self.hidden), self.batch_size):
            rows = slice(start, start + self.batch_size)
            output = block(self._entering(rows), **self.kwargs[self.index])
            yield rows, output[0] if isinstance(output, tuple) else output
            self.shelf.let_go()

    def inputs_of(
        self, block: nn.Module, module: str, beside: str | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Run the current block up to one of its modules, yielding (rows, what that module works on, ...).

        Args:
            block: the block.
            module: the module.
            beside: another module that is reached before it, whose input is yielded too; else that is None.
        """
        seen: list[Tensor] = []
        other = nn.Identity() if beside is None else block.get_submodule(beside)
        handle = other.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            for rows, call in self.calls_of(block, module):
                passed = None if beside is None else seen[-1]
                seen.clear()
                yield rows, prepared_input(block.get_submodule(module), call.args[0]), passed
        finally:
            handle.remove()

    def calls_of(self, block: nn.Module, module: str) -> Iterator[tuple[slice, Call]]:
        """Run the current block up to one of its modules, yielding (rows, how it was called)."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(Call(args=args, kwargs=kwargs))

        for start in range(0, len(self.hidden), self.batch_size):
            rows = slice(start, start + self.batch_size)
            # The hook is gone before the caller sees the input: it may run the block meanwhile.
            handle = block.get_submodule(module).register_forward_pre_hook(stop, with_kwargs=True)
            try:
                block(self._entering(rows), **self.kwargs[self.index])
            except _Reached as reached:
                call = reached.call
            finally:
                handle.remove()
            yield rows, call
            self.shelf.let_go()

    @torch.no_grad()
    def advance(self, block: nn.Module) -> None:
        """Replace the hidden states by the block's outputs and move on to the next block."""
        for rows, output in self.batches(block):
            self.hidden[rows] = output
        self.index += 1

    def fork(self, windows: slice = slice(None)) -> BlockStream:
        """Return a second stream from the same hidden states, or from those of some windows."""
        own = self.hidden[windows]
        shelf = self.shelf.another(n_bytes(own.shape, own.dtype))
        hidden = shelf.place(own.shape, own.dtype).copy_(own)
        self.shelf.let_go()
        shelf.let_go()
        return replace(self, hidden=hidden, shelf=shelf)

    def _entering(self, rows: slice) -> Tensor:
        """Return the hidden states of some windows, on the device."""
        return self.hidden[rows].to(self.shelf.device, non_blocking=True)


@torch.no_grad()
def open_stream(view: Model, tokens: Tensor, batch_size: int, n_beside: int = 1) -> BlockStream:
    """Return the stream that enters the first block.

    Args:
        view: of a model.
        tokens: [n_samples, seq_len] token ids, all windows full.
        batch_size: windows per forward pass.
        n_beside: streams of these windows that go side by side.
    """
    shape = (*tokens.shape, view.architecture.hidden_size)
    view.fill()
    shelf = Shelf(n_bytes(shape, view.dtype), view.room, view.device, n_beside)
    hidden = shelf.place(shape, view.dtype)
    kwargs: tuple[dict[str, Any], ...] = ()
    with blocks_passed_by(view.module, view.architecture) as recorders:
        for start in range(0, len(tokens), batch_size):
            rows = slice(start, start + batch_size)
            view.module.get_decoder()(input_ids=tokens[rows].to(view.device), use_cache=False)
            assert recorders[0].hidden is not None
            hidden[rows] = recorders[0].hidden
            # Positions and masks are the same for every window: keep those of one.
            kwargs = kwargs or tuple({k: _first_row(v) for k, v in r.kwargs.items()} for r in recorders)
            shelf.let_go()
    return BlockStream(hidden=hidden, kwargs=kwargs, batch_size=batch_size, shelf=shelf)


@contextmanager
def decoding(
    asked: Mapping[Model, Sequence[Inputs]],
    advance: Callable[[], None] = lambda: None,
    beside: Sequence[Passenger] = (),
) -> Iterator[list[Decoding]]:
    """Take many inputs past the blocks of several views of a model, which are all read once.

    Meanwhile the weights of the first view's head are there.

    Args:
        asked: of each view, what give the arguments of a decoder's forward.
        advance: told of every block that all have passed.
        beside: others who are on the way past the blocks.
    """
    with ExitStack() as stack, torch.no_grad():
        decodings = [Decoding(model, inputs, stack, asked) for model, inputs in asked.items()]
        walk_blocks([*decodings, *beside], advance)
        first = decodings[0].model
        stack.enter_context(first.there(first.module.get_output_embeddings()))
        yield decodings


class Decoding:
    """Many inputs on their way through a model.

    Masks and positions are made anew for each of them and each block, by the model's own forward.
    """

    def __init__(
        self, model: Model, inputs: Sequence[Inputs], stack: ExitStack, beside: Collection[Model] = ()
    ) -> None:
        """Make room for the hidden states.

        Args:
            model: the view.
            inputs: see `decoding`.
            stack: ends the recording.
            beside: the views that walk side by side, this one among them.
        """
        self.model = model
        self._decoder = model.module.get_decoder()
        self._inputs = inputs
        shapes = [(*make()["input_ids"].shape, model.architecture.hidden_size) for make in inputs]
        size = sum(n_bytes(shape, model.dtype) for shape in shapes)
        self._shelf = Shelf(size, model.room, model.device, max(1, len(beside)))
        self._hidden = [self._shelf.place(shape, model.dtype) for shape in shapes]
        self._recorders = stack.enter_context(blocks_passed_by(model.module, model.architecture))

    def work(self, index: int, block: nn.Module) -> None:
        """Take all inputs past a block."""
        recorder = self._recorders[index]
        for make, kept in zip(self._inputs, self._hidden, strict=True):
            self._decoder(**make(), use_cache=False)
            if index == 0:
                assert recorder.hidden is not None
                kept.copy_(recorder.hidden)
            output = block(kept.to(self.model.device), **recorder.kwargs)
            kept.copy_(output[0] if isinstance(output, tuple) else output)
            self._shelf.let_go()

    def outputs(self) -> Iterator[Tensor]:
        """Yield what the decoder gives for each input, all of which have passed all blocks."""
        for make, kept in zip(self._inputs, self._hidden, strict=True):
            self._recorders[-1].given = kept.to(self.model.device)
            output: Tensor = self._decoder(**make(), use_cache=False).last_hidden_state
            yield output
            self._shelf.let_go()


@contextmanager
def blocks_passed_by(model: nn.Module, architecture: Architecture) -> Iterator[list[_Recorder]]:
    """Let a model's forward pass by its blocks, which are not run and need not be there."""
    blocks = architecture.block_modules(model)
    originals = list(blocks)
    recorders = [_Recorder(block) for block in originals]
    try:
        for index, recorder in enumerate(recorders):
            blocks[index] = recorder
        yield recorders
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


def _first_row(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value[:1] if value.dim() > 1 else value
    if isinstance(value, tuple):
        return tuple(_first_row(v) for v in value)
    return value
