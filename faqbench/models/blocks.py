"""Walking a model block by block.

A `BlockStream` holds the hidden states that enter one decoder block, for all calibration windows, and
moves them through the blocks one at a time. Nothing but the current block's inputs is ever kept, so a
walk needs the memory of one set of hidden states, whatever the depth of the model; and it asks the model
for one block at a time, so that blocks may come from anywhere.

What a block needs beside its hidden states (rotary embeddings, masks; in some families they differ from
block to block) is taken from the model's own forward pass, run once with every block replaced by a
recorder that returns its input. The key-value cache is off: a live cache captured here would silently
corrupt every later call of a block.

`walk_blocks` is the one loop over a model's blocks: a block arrives, its passengers work on it, and it
goes.

    walk_blocks([a, b, c])      block 0: a, b, c;   block 1: a, b, c;   ...

Whatever looks at a model block by block is a passenger: what observes activations, what quantizes, what
scores. Those of one view share its blocks, so each block is read once however many they are. Those of
several views (a quantized model, and the full precision model that it is compared with) go side by side,
one block after the other.

While a block is worked on, one thread reads the next, where the budget has room for a block more. Nothing
that a passenger sees depends on it. Gradients are off, but may be taken inside a block.

What a streamed block has left free between other pieces goes back to the system with it: weights that one
thread took and another gave back would add up from block to block.

`Shelf` is where hidden states wait between two blocks: with the model, beside it, or on disk.

    on the device       while `Room.hidden_bytes` holds them
    in pinned memory    of the host of a CUDA device, from where copies run beside computing
    in a mapped file    otherwise: one without a name, which goes with the process however that ends

A place on a shelf is a tensor in any case, in the dtype of the model, and nothing that is computed from it
depends on where it lies. The pages of a file are let go after every use: they are the system's, which keeps
them while it has nothing better to do with its memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from faqbench.files import explain_os_error
from faqbench.models.architecture import Architecture
from faqbench.models.model import Model, Room
from faqbench.models.prepared import prepared_input
from faqbench.stages.cache import cache_root


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
                    view.give_back()
                    advance()
        finally:
            for view in views:
                view.forget_ahead()


_REMEDY = "free some space, set FAQBENCH_CACHE to a folder on another disk, or raise memory.host_gigabytes"
_ALIGNED = 64  # bytes, as the allocators of torch do: products round by where their factors lie


class Shelf:
    """Room for tensors whose sizes are known beforehand.

    Attributes:
        device: of the model.
        is_away: whether they lie anywhere else than there.
    """

    def __init__(self, n_bytes: int, room: Room, device: torch.device, n_beside: int = 1) -> None:
        """Take the memory, or the space on disk.

        Args:
            n_bytes: from `n_bytes`, of all tensors.
            room: how much there may be on the device and in the host's memory.
            device: of the model.
            n_beside: shelves of this size that are in use together.

        Raises:
            UserError: when the disk is full.
        """
        self.device = device
        self._room, self._n_beside = room, n_beside
        self._map: mmap.mmap | None = None
        self._used = 0
        self.is_away = room.hidden_bytes is not None and n_beside * n_bytes > room.hidden_bytes
        is_pinned = device.type == "cuda" and n_beside * n_bytes <= (room.host_bytes or 0)
        if not self.is_away:
            self._bytes = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        elif is_pinned:
            self._bytes = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        else:
            self._bytes = self._mapped(n_bytes)

    def place(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the next tensor, of a shape and dtype; what is in it is undefined."""
        size = dtype.itemsize * prod(shape)
        piece = self._bytes[self._used : self._used + size]
        self._used += n_bytes(shape, dtype)
        return piece.view(dtype).view(*shape)

    def another(self, n_bytes: int) -> Shelf:
        """Return a shelf of another size that the same is known of."""
        return Shelf(n_bytes, self._room, self.device, self._n_beside)

    def let_go(self) -> None:
        """Give the memory of a file's pages back; they are read again when they are used again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _mapped(self, size: int) -> Tensor:
        root = cache_root()
        with explain_os_error("write hidden states that wait", root, _REMEDY):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, no signal later
                self._map = mmap.mmap(file.fileno(), size)
        return torch.frombuffer(self._map, dtype=torch.uint8)


def n_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return what a tensor takes of a shelf."""
    return -(-dtype.itemsize * prod(shape) // _ALIGNED) * _ALIGNED


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
        states = self.hidden[windows]
        shelf = self.shelf.another(n_bytes(states.shape, states.dtype))
        hidden = shelf.place(states.shape, states.dtype).copy_(states)
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
