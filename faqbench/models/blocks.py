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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from faqbench.models.architecture import Architecture
from faqbench.models.model import Model, device_of
from faqbench.models.prepared import prepared_input
from faqbench.models.walk import walk_blocks

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
        index: the block that `hidden` is the input of.
    """

    hidden: Tensor
    kwargs: tuple[dict[str, Any], ...]
    batch_size: int
    index: int = 0

    def batches(self, block: nn.Module) -> Iterator[tuple[slice, Tensor]]:
        """Run the current block over all windows, yielding (rows, output) batch by batch."""
        for start in range(0, len(self.hidden), self.batch_size):
            rows = slice(start, start + self.batch_size)
            output = block(self.hidden[rows], **self.kwargs[self.index])
            yield rows, output[0] if isinstance(output, tuple) else output

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
                block(self.hidden[rows], **self.kwargs[self.index])
            except _Reached as reached:
                call = reached.call
            finally:
                handle.remove()
            yield rows, call

    @torch.no_grad()
    def advance(self, block: nn.Module) -> None:
        """Replace the hidden states by the block's outputs and move on to the next block."""
        for rows, output in self.batches(block):
            self.hidden[rows] = output
        self.index += 1

    def fork(self, windows: slice = slice(None)) -> BlockStream:
        """Return a second stream from the same hidden states, or from those of some windows."""
        return BlockStream(
            hidden=self.hidden[windows].clone(),
            kwargs=self.kwargs,
            batch_size=self.batch_size,
            index=self.index,
        )


@torch.no_grad()
def open_stream(
    model: nn.Module, architecture: Architecture, tokens: Tensor, batch_size: int
) -> BlockStream:
    """Return the stream that enters the first block.

    Args:
        model: a causal language model on its device, in its dtype.
        architecture: where its blocks are.
        tokens: [n_samples, seq_len] token ids, all windows full.
        batch_size: windows per forward pass.
    """
    hidden = []
    kwargs: tuple[dict[str, Any], ...] = ()
    device = device_of(model)
    with _recorders(model, architecture) as recorders:
        for batch in torch.split(tokens, batch_size):
            model.get_decoder()(input_ids=batch.to(device), use_cache=False)  # type: ignore[operator]
            assert recorders[0].hidden is not None
            hidden.append(recorders[0].hidden)
            # Positions and masks are the same for every window: keep those of one.
            kwargs = kwargs or tuple(
                {k: _first_row(v) for k, v in r.kwargs.items()} for r in recorders
            )
    return BlockStream(hidden=torch.cat(hidden), kwargs=kwargs, batch_size=batch_size)


@torch.no_grad()
def last_hidden_states(
    models: Sequence[Model], inputs: Sequence[Inputs]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the outputs of the models' decoders for each of many inputs, reading every block once.

    All inputs go through one block before the next is read, or as many as there is room for the hidden
    states of, and the others after them. While outputs are looked at, the weights of the first model's
    head are there.

    Args:
        models: of any size.
        inputs: give the arguments of a decoder's forward.
    """
    for together in _that_fit(models, inputs):
        with ExitStack() as stack:
            decodings = [_Decoding(model, together, stack) for model in models]
            walk_blocks(decodings)
            stack.enter_context(models[0].there(models[0].module.get_output_embeddings()))
            for number in range(len(together)):
                yield tuple(decoding.output(number) for decoding in decodings)


def _that_fit(models: Sequence[Model], inputs: Sequence[Inputs]) -> Iterator[list[Inputs]]:
    """Cut inputs into runs of which the hidden states of all models fit; a single one is a run."""
    first, together, n_bytes = models[0], list[Inputs](), 0
    per_token = len(models) * first.architecture.hidden_size * first.dtype.itemsize
    for make in inputs:
        own = per_token * make()["input_ids"].numel()
        room = first.room.hidden_bytes
        if together and room is not None and n_bytes + own > room:
            yield together
            together, n_bytes = [], 0
        together.append(make)
        n_bytes += own
    yield together


class _Decoding:
    """Many inputs on their way through a model.

    Masks and positions are made anew for each of them and each block, by the model's own forward.
    """

    def __init__(self, model: Model, inputs: Sequence[Inputs], stack: ExitStack) -> None:
        self.model = model
        self._decoder = model.module.get_decoder()
        self._inputs = inputs
        self._hidden: list[Tensor] = []
        self._recorders = stack.enter_context(_recorders(model.module, model.architecture))

    def work(self, index: int, block: nn.Module) -> None:
        recorder = self._recorders[index]
        for number, make in enumerate(self._inputs):
            self._decoder(**make(), use_cache=False)
            if index == 0:
                assert recorder.hidden is not None
                self._hidden.append(recorder.hidden)
            output = block(self._hidden[number], **recorder.kwargs)
            self._hidden[number] = output[0] if isinstance(output, tuple) else output

    def output(self, number: int) -> Tensor:
        """Return what the decoder gives for an input that has passed all blocks."""
        self._recorders[-1].given = self._hidden[number]
        output: Tensor = self._decoder(**self._inputs[number](), use_cache=False).last_hidden_state
        return output


@contextmanager
def _recorders(model: nn.Module, architecture: Architecture) -> Iterator[list[_Recorder]]:
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
