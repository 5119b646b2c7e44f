"""Requests of one task packed into few forwards: what they share is encoded once, nothing is padded twice.

A request asks for the log-likelihood of a continuation after a context. The inputs of a task's requests
(context and continuation, without the last token) overlap: choices follow one context, questions follow
one passage, few-shot prompts begin alike. Sorted, they are the paths of a forest in depth-first order:

    The sky is  ─┬─ blue            nodes    The sky is blue and clear green
                 ├─ blue and clear  position  0   1  2   3   4    5     3
                 └─ green           end       7   7  7   6   6    6     7

Node i may see node j exactly when j is an ancestor or itself, and in depth-first order that is

    j <= i < end[j]        end[j]: one past the last node below j

so a forest of any shape is three integers per token: its id, its position and its end.

    requests -> groups (trees of requests that share enough) -> rows (groups side by side)
             -> packs (rows of about one length; one forward each)

Everything is decided by the *set* of token sequences: not by their order, and by nothing outside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Tokens = tuple[int, ...]

# Attention over a row costs as the square of its length, so short trees share rows only up to here.
ROW_TOKENS = 128
# A request joins a tree when at least this part of it is there already.
_SHARED_FRAC = 0.25
# A row shorter than the longest by this much begins a forward of its own, unless that one is still small.
_PADDING_FRAC = 0.1


@dataclass(frozen=True)
class Request:
    """One log-likelihood to find.

    Attributes:
        tokens: context and continuation.
        n_scored: how many of the last tokens are the continuation, at least 1 and fewer than all.
    """

    tokens: Tokens
    n_scored: int

    @property
    def inputs(self) -> Tokens:
        """What the model reads: nothing is predicted from the last token."""
        return self.tokens[:-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Where in a pack one request's continuation is predicted.

    Attributes:
        request: its index in the order given to `pack`.
        nodes: [n_scored] places in the flattened pack whose next token is scored.
        targets: [n_scored] the tokens wanted there.
    """

    request: int
    nodes: Array
    targets: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """One forward.

    Attributes:
        tokens: [n_rows, length] int64; places after a row's end hold token 0.
        positions: [n_rows, length] int64, the depth of each node in its tree.
        ends: [n_rows, length] int64, one past the last node below each node; padding sees itself only.
        is_chain: whether every row is one path, for which a causal mask is enough.
        n_nodes: tokens that are not padding.
        scored: the requests that this pack answers.
    """

    tokens: Array
    positions: Array
    ends: Array
    is_chain: bool
    n_nodes: int
    scored: tuple[Scored, ...]


def pack(requests: Sequence[Request], batch_tokens: int) -> list[Pack]:
    """Pack requests into forwards of at most `batch_tokens` tokens, padding included.

    A single input that is longer than the budget is a pack of its own.

    Args:
        requests: in any order; equal ones are computed once.
        batch_tokens: of one forward, at least 1.
    """
    inputs = sorted({request.inputs for request in requests})
    row_tokens = min(ROW_TOKENS, batch_tokens)
    rows = _rows(_groups(inputs, row_tokens, batch_tokens), row_tokens)
    askers: dict[Tokens, list[int]] = {}
    for index, request in enumerate(requests):
        askers.setdefault(request.inputs, []).append(index)
    packs = _forwards(rows, batch_tokens)
    return [_layout(forward, requests, askers) for forward in packs]


def n_unshared_tokens(requests: Sequence[Request]) -> int:
    """Return the tokens that would be encoded if only requests with equal inputs shared a forward."""
    return sum(len(inputs) for inputs in {request.inputs for request in requests})


@dataclass(frozen=True)
class _Group:
    """Consecutive sorted inputs encoded as one forest, and how many nodes it has."""

    inputs: tuple[Tokens, ...]
    n_nodes: int


def _groups(inputs: Sequence[Tokens], row_tokens: int, batch_tokens: int) -> list[_Group]:
    """Cut sorted inputs where neighbours share little, or where a tree becomes too long for a row."""
    groups: list[_Group] = []
    begin, n_nodes, longest = 0, 0, 0
    for index, current in enumerate(inputs):
        shared = _shared_prefix(inputs[index - 1], current) if index > begin else 0
        longer = max(longest, len(current))
        # A long common prefix (few-shot examples) is worth a row of twice its length.
        limit = max(row_tokens, longer, min(2 * longer, batch_tokens))
        grown = n_nodes + len(current) - shared
        if index > begin and (shared < _SHARED_FRAC * len(current) or grown > limit):
            groups.append(_Group(tuple(inputs[begin:index]), n_nodes))
            begin, grown, longer = index, len(current), len(current)
        n_nodes, longest = grown, longer
    if inputs:
        groups.append(_Group(tuple(inputs[begin:]), n_nodes))
    return groups


def _rows(groups: Sequence[_Group], row_tokens: int) -> list[list[_Group]]:
    """Put groups side by side, longest first, each into the fullest row that still has room for it."""
    rows: list[list[_Group]] = []
    with_room: dict[int, list[int]] = {}
    for group in sorted(groups, key=lambda g: (-g.n_nodes, g.inputs)):
        room = min((r for r in with_room if r >= group.n_nodes), default=None)
        if room is None:
            rows.append([group])
            index, left = len(rows) - 1, row_tokens - group.n_nodes
        else:
            index = with_room[room].pop(0)
            if not with_room[room]:
                del with_room[room]
            rows[index].append(group)
            left = room - group.n_nodes
        if left > 0:
            with_room.setdefault(left, []).append(index)
    return rows


def _forwards(rows: Sequence[list[_Group]], batch_tokens: int) -> Iterator[list[list[_Group]]]:
    """Collect rows of about one length, longest first, into forwards within the budget."""

    def length(row: list[_Group]) -> int:
        return sum(group.n_nodes for group in row)

    forward: list[list[_Group]] = []
    for row in sorted(rows, key=lambda r: (-length(r), [g.inputs for g in r])):
        if forward:
            longest, n_rows = length(forward[0]), len(forward)
            full = (n_rows + 1) * longest > batch_tokens
            padded = length(row) < (1 - _PADDING_FRAC) * longest
            if full or (padded and n_rows * longest >= batch_tokens // 4):
                yield forward
                forward = []
        forward.append(row)
    if forward:
        yield forward


def _layout(
    forward: Sequence[list[_Group]], requests: Sequence[Request], askers: dict[Tokens, list[int]]
) -> Pack:
    """Write the rows of one forward into arrays, and find where its requests are scored."""
    length = max(sum(group.n_nodes for group in row) for row in forward)
    shape = (len(forward), length)
    tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(forward), 1))
    scored: list[Scored] = []
    n_nodes = 0
    for index, row in enumerate(forward):
        start = 0
        for group in row:
            for inputs, path in _paths(group, start, tokens[index], positions[index], ends[index]):
                for request in askers[inputs]:
                    n = requests[request].n_scored
                    targets = np.array(requests[request].tokens[-n:])
                    nodes = path[-n:] + index * length
                    scored.append(Scored(request=request, nodes=nodes, targets=targets))
            start += group.n_nodes
        n_nodes += start
    return Pack(
        tokens=tokens,
        positions=positions,
        ends=ends,
        is_chain=all(len(row) == 1 and len(row[0].inputs[-1]) == row[0].n_nodes for row in forward),
        n_nodes=n_nodes,
        scored=tuple(scored),
    )


def _paths(
    group: _Group, start: int, tokens: Array, positions: Array, ends: Array
) -> Iterator[tuple[Tokens, Array]]:
    """Write one group's nodes from `start` on into a row, and yield each input with its node path."""
    path = np.zeros(0, dtype=np.int64)
    previous: Tokens = ()
    next_node = start
    for inputs in group.inputs:
        shared = _shared_prefix(previous, inputs)
        ends[path[shared:]] = next_node  # what is left behind here is complete
        new = np.arange(next_node, next_node + len(inputs) - shared)
        tokens[new] = inputs[shared:]
        positions[new] = np.arange(shared, len(inputs))
        path, previous = np.concatenate([path[:shared], new]), inputs
        next_node += len(new)
        yield inputs, path
    ends[path] = next_node
    assert next_node == start + group.n_nodes


def _shared_prefix(a: Tokens, b: Tokens) -> int:
    shortest = min(len(a), len(b))
    return next((i for i in range(shortest) if a[i] != b[i]), shortest)
