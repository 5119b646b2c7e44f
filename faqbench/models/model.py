"""A model is a view: a skeleton without weights, and the `Tensors` that it takes them from to use them.

    skeleton   the modules of transformers with every parameter on the meta device, buffers real
    tensors    where values are read: as stored, drawn, with quantized linears in the place of some, ...
    dtypes     what a value is cast to on its way, one after the other

The same tensors serve many views: pristine in the calibration's dtype, cast to the evaluation's, quantized.
No view changes another's values, so nothing has to be undone.

A view is *resident* or *streamed*. A resident one keeps what it has read once; a streamed one has a part of
the model (the embedding, one block, the norm, the head) there while somebody uses it and gives its memory
back after. Whatever runs the modules finds the weights either way, by hooks; whoever runs a block many
times holds it meanwhile with `block(index)`. Values are the same to the bit, so which of the two it is
depends on a memory budget alone (`memory.py`).

A streamed embedding is never there whole: the rows of the tokens asked for make a table of their own.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from faqbench.models.architecture import Architecture
from faqbench.models.tensors import ALL, Tensors
from faqbench.processes import give_back

Prepare = Callable[[Any, Architecture], None]
_ROWS = 2**14  # of a table that are read together


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there may be in memory beside a block that is worked on.

    Attributes:
        reads_ahead: whether the next block.
        hidden_bytes: on the device, of hidden states that wait between two blocks, of all that walk side by
            side; more of them wait elsewhere (`blocks.Shelf`). None is any number.
        host_bytes: in the host's memory beside a CUDA device, of these.
    """

    reads_ahead: bool = False
    hidden_bytes: int | None = None
    host_bytes: int | None = None


class Model:
    """A causal language model of transformers over tensors.

    Attributes:
        module: the model itself, in evaluation mode, without gradients.
        architecture: where its blocks and linears are.
        tensors: where its weights are read.
        dtypes: that they are cast to, one after the other; the last is the model's.
        device: where it runs.
        is_resident: whether weights stay where they are once they were read.
        room: what a streamed one may have in memory beside the block that is worked on.
    """

    def __init__(
        self,
        skeleton: Any,
        architecture: Architecture,
        tensors: Tensors,
        dtypes: Sequence[torch.dtype],
        device: torch.device,
        *,
        is_resident: bool = True,
        room: Room | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        """Make a view; nothing is read yet.

        Args:
            skeleton: from `skeleton_of`; the view has a copy of its own.
            architecture: of the model.
            tensors: every parameter by its name in the skeleton; a tied one by its first name.
            dtypes: see the class.
            device: see the class.
            is_resident: see the class.
            room: see the class.
            prepare: changes the view's own skeleton once: it may replace modules by others that have
                parameters of the same names, on the meta device.
        """
        self._skeleton = skeleton
        self.module = copy.deepcopy(skeleton)
        self.architecture = architecture
        self.tensors = tensors
        self.dtypes = tuple(dtypes)
        self.device = device
        self.is_resident = is_resident
        self.room = room or Room()
        if prepare is not None:
            prepare(self.module, architecture)
        self._blocks = list(architecture.block_modules(self.module))
        self._ahead: dict[int, Future[dict[int, Tensor]]] = {}
        self._names = {id(p): name for name, p in self.module.named_parameters()}
        self._shared: dict[int, nn.Parameter] = {}  # of a resident view: tied parameters stay one
        # What the parts that are there will be given back, by part.
        self._emptied: dict[int, list[tuple[nn.Module, str, nn.Parameter]]] = {}
        self._users: Counter[int] = Counter()
        for parameter in self.module.parameters():
            parameter.data = parameter.data.to(self.dtypes[-1])
        persistent = self.module.state_dict()
        for name, buffer in self.module.named_buffers():
            value = tensors.read(name).clone() if name in persistent else buffer
            buffer.data = value.to(device)
        if not is_resident:
            self._watch()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.dtypes[-1]

    @property
    def n_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(p.numel() for p in self.module.parameters())

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Have a decoder block with its weights while it is used."""
        with self.there(self._blocks[index]) as block:
            yield block

    def read_ahead(self, index: int, reader: Executor) -> None:
        """Begin to read a block that is used next, if it goes and there is room; see `walk_blocks`."""
        if self.is_resident or not self.room.reads_ahead:
            return
        block = self._blocks[index]

        def read() -> dict[int, Tensor]:
            return {id(p): self._read(p) for p in block.parameters() if p.is_meta}

        self._ahead[id(block)] = reader.submit(read)

    def forget_ahead(self) -> None:
        """Let go of what was read and is not used."""
        self._ahead.clear()

    @contextmanager
    def there(self, part: nn.Module) -> Iterator[nn.Module]:
        """Have a part of the model with its weights while it is used; a streamed one's go afterwards."""
        try:
            self._enter(part)
            yield part
        finally:
            self._leave(part)

    def fill(self) -> Model:
        """Read all weights of a resident view that are not there yet, and return it."""
        if self.is_resident:
            self._enter(self.module)
        return self

    def empty(self) -> None:
        """Give the memory of a resident view back; it is read again when it is used again."""
        for owner, leaf, parameter in chain.from_iterable(self._emptied.values()):
            owner._parameters[leaf] = parameter
        self._emptied.clear()
        self._users.clear()
        self._shared.clear()

    def give_back(self) -> None:
        """Give what a streamed view's blocks left free back to the system; a resident one uses it again."""
        if not self.is_resident:
            give_back()

    def weight(self, name: str) -> Tensor:
        """Return a parameter's value in the model's dtype, by its full name."""
        parameter: nn.Parameter = self.module.get_parameter(name)
        return self._read(parameter) if parameter.is_meta else parameter

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter by name, tied ones once; a streamed model has one at a time in memory."""
        for name, _ in self.module.named_parameters():
            yield name, self.weight(name)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the rows of a parameter in order, some at a time."""
        parameter: nn.Parameter = self.module.get_parameter(name)
        if not parameter.is_meta:
            yield parameter
            return
        for rows in _cuts(parameter):
            yield self._cast(self.tensors.read(self._names[id(parameter)], rows))

    def view(
        self,
        *,
        tensors: Tensors | None = None,
        dtypes: Sequence[torch.dtype] | None = None,
        prepare: Prepare | None = None,
    ) -> Model:
        """Return another view of the same model, whose weights it reads itself."""
        return Model(
            self._skeleton,
            self.architecture,
            self.tensors if tensors is None else tensors,
            self.dtypes if dtypes is None else dtypes,
            self.device,
            is_resident=self.is_resident,
            room=self.room,
            prepare=prepare,
        )

    def _enter(self, part: nn.Module) -> None:
        self._users[id(part)] += 1
        if self._users[id(part)] > 1:
            return
        ahead = self._ahead.pop(id(part), None)
        known = {} if ahead is None else ahead.result()
        filled = self._emptied[id(part)] = []
        for owner in part.modules():
            for leaf, parameter in owner._parameters.items():
                if parameter is not None and parameter.is_meta:
                    owner._parameters[leaf] = self._made(parameter, known.get(id(parameter)))
                    filled.append((owner, leaf, parameter))

    def _leave(self, part: nn.Module) -> None:
        self._users[id(part)] -= 1
        if self._users[id(part)] or self.is_resident:
            return
        for owner, leaf, parameter in self._emptied.pop(id(part)):
            owner._parameters[leaf] = parameter

    def _made(self, parameter: nn.Parameter, value: Tensor | None) -> nn.Parameter:
        if id(parameter) in self._shared:
            return self._shared[id(parameter)]
        with torch.inference_mode(False):  # whoever reads first: others may take gradients
            value = self._read(parameter) if value is None else value
            made = nn.Parameter(value, requires_grad=False)
        if self.is_resident:
            self._shared[id(parameter)] = made
        return made

    def _read(self, parameter: nn.Parameter) -> Tensor:
        name, shape = self._names[id(parameter)], tuple(parameter.shape)
        found = self.tensors.shape(name)
        assert found == shape, f"{name} is {found}, not {shape}"
        if len(cuts := _cuts(parameter)) > 1:  # never there twice: of a vocabulary it is gigabytes
            whole = torch.empty(shape, dtype=self.dtype, device=self.device)
            for rows in cuts:
                whole[rows] = self._cast(self.tensors.read(name, rows))
            return whole
        stored = self.tensors.read(name)
        value = self._cast(stored)
        # A view of a mapped file goes when the file does, and lies there as it happens to.
        return value.clone() if value.data_ptr() == stored.data_ptr() else value

    def _cast(self, value: Tensor) -> Tensor:
        value = value.to(self.device).float()
        for dtype in self.dtypes:
            value = value.to(dtype)
        return value

    def _watch(self) -> None:
        """Let every part of a streamed view have its weights while it runs."""
        embedding = self.module.get_input_embeddings()
        parts = list(self._blocks)
        covered = {id(m) for part in [*parts, embedding] for m in part.modules()}
        parts += [m for m in self.module.modules() if m._parameters and id(m) not in covered]
        for part in parts:
            part.register_forward_pre_hook(lambda part, _: self._enter(part))
            part.register_forward_hook(lambda part, *_: self._leave(part), always_call=True)
        embedding.padding_idx = None  # it matters to gradients alone, and names a row of the whole table
        whole = embedding.weight

        def look_up(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens, places = args[0].unique(return_inverse=True)
            rows = self.tensors.read(self._names[id(whole)])[tokens.cpu()]
            module._parameters["weight"] = nn.Parameter(self._cast(rows), requires_grad=False)
            return (places, *args[1:])

        def forget(module: nn.Module, *_: Any) -> None:
            module._parameters["weight"] = whole

        embedding.register_forward_pre_hook(look_up)
        embedding.register_forward_hook(forget, always_call=True)


def _cuts(parameter: Tensor) -> list[slice]:
    """Return the rows of a parameter that are read together."""
    n_rows = len(parameter) if parameter.dim() else 0
    if n_rows <= _ROWS:
        return [ALL]
    return [slice(start, min(start + _ROWS, n_rows)) for start in range(0, n_rows, _ROWS)]


def skeleton_of(module: Any) -> Any:
    """Return a model's modules without its weights: its parameters on the meta device, tied ones one."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


@contextmanager
def without_weights() -> Iterator[None]:
    """Let models that are built meanwhile keep their parameters on the meta device; buffers are real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def device_of(model: nn.Module) -> torch.device:
    """Return where a model runs; parameters that are only there while they are used do not say it."""
    tensors = chain(model.parameters(), model.buffers())
    return next(tensor.device for tensor in tensors if not tensor.is_meta)


def twin(block: nn.Module) -> nn.Module:
    """Return a second block that shares the first one's tensors until its own are replaced."""
    shared: dict[int, Any] = {id(t): t for t in chain(block.parameters(), block.buffers())}
    return copy.deepcopy(block, shared)
