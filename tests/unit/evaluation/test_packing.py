from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from faqbench.evaluation.packing import ROW_TOKENS, Pack, Request, n_unshared_tokens, pack


def choices(
    rng: random.Random, n_documents: int, context: tuple[int, int], choice: tuple[int, int]
) -> list[Request]:
    """Make documents of four choices after one context, all of random lengths."""
    requests = []
    for _ in range(n_documents):
        before = [rng.randrange(9) for _ in range(rng.randint(*context))]
        for _ in range(4):
            after = [rng.randrange(9) for _ in range(rng.randint(*choice))]
            requests.append(Request(tokens=tuple(before + after), n_scored=len(after)))
    return requests


def some_requests(seed: int) -> list[Request]:
    rng = random.Random(seed)
    mixed = [*choices(rng, 20, (3, 60), (1, 12)), *choices(rng, 3, (150, 300), (1, 3))]
    return [*mixed, *mixed[:5], Request(tokens=(1, 2), n_scored=1)]


def seen_by(one: Pack, node: int) -> np.ndarray[Any, Any]:
    """Return the places of a row that a node may attend to, as the mask has it."""
    row, column = divmod(node, one.tokens.shape[1])
    places = np.arange(one.tokens.shape[1])
    return row * one.tokens.shape[1] + places[(places <= column) & (column < one.ends[row])]


def answers(packs: Sequence[Pack]) -> list[tuple[Pack, Any]]:
    return [(one, scored) for one in packs for scored in one.scored]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 100, 1000])
def test_a_node_sees_exactly_its_request_up_to_itself(seed: int, budget: int) -> None:
    requests = some_requests(seed)
    for one, scored in answers(pack(requests, budget)):
        request = requests[scored.request]
        for node, target in zip(scored.nodes, scored.targets, strict=True):
            seen = seen_by(one, node)
            n_read = len(seen)
            assert tuple(one.tokens.ravel()[seen]) == request.tokens[:n_read]
            assert list(one.positions.ravel()[seen]) == list(range(n_read))
            assert request.tokens[n_read] == target
        assert n_read == len(request.tokens) - 1


@pytest.mark.parametrize("seed", range(5))
def test_every_request_is_answered_once(seed: int) -> None:
    requests = some_requests(seed)
    found = [scored.request for _, scored in answers(pack(requests, 500))]
    assert sorted(found) == list(range(len(requests)))
    for _, scored in answers(pack(requests, 500)):
        assert len(scored.nodes) == requests[scored.request].n_scored


@pytest.mark.parametrize("seed", range(5))
def test_packs_do_not_depend_on_the_order_of_requests(seed: int) -> None:
    requests = some_requests(seed)
    shuffled = random.Random(seed).sample(requests, len(requests))
    for one, other in zip(pack(requests, 400), pack(shuffled, 400), strict=True):
        for name in ("tokens", "positions", "ends"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("budget", [40, 400, 4000])
def test_a_forward_stays_within_the_budget_unless_one_input_exceeds_it(budget: int) -> None:
    requests = some_requests(0)
    longest = max(len(r.inputs) for r in requests)
    for one in pack(requests, budget):
        assert one.tokens.size <= max(budget, longest)
        assert one.tokens.size <= budget or len(one.tokens) == 1


def test_the_context_of_several_choices_is_encoded_once() -> None:
    requests = [Request(tokens=(*range(50), 60 + i, 70 + i), n_scored=2) for i in range(4)]
    (one,) = pack(requests, 1000)
    assert one.n_nodes == one.tokens.size == 50 + 4
    assert n_unshared_tokens(requests) == 4 * 51


def test_continuations_of_one_token_share_one_path() -> None:
    requests = [Request(tokens=(1, 2, 3, 10 + i), n_scored=1) for i in range(3)]
    (one,) = pack(requests, 1000)
    assert one.n_nodes == 3 and one.is_chain
    assert [scored.nodes.tolist() for scored in one.scored] == [[2], [2], [2]]
    assert [scored.targets.tolist() for scored in one.scored] == [[10], [11], [12]]


def test_a_request_that_begins_another_needs_no_nodes_of_its_own() -> None:
    requests = [Request(tokens=tuple(range(n)), n_scored=2) for n in (5, 9)]
    (one,) = pack(requests, 1000)
    assert one.n_nodes == 8 and one.is_chain


def test_equal_requests_are_computed_once_and_answered_each() -> None:
    (one,) = pack([Request(tokens=(1, 2, 3), n_scored=1)] * 3, 1000)
    assert one.n_nodes == 2 and len(one.scored) == 3


def test_examples_before_many_questions_are_encoded_once_per_row() -> None:
    shots = tuple(range(600))
    questions = [(*shots, *(1000 + 20 * i + j for j in range(20))) for i in range(100)]
    packs = pack([Request(tokens=q, n_scored=1) for q in questions], 2048)
    n_nodes = sum(one.n_nodes for one in packs)
    assert all(one.tokens.size <= 2048 for one in packs)
    assert n_nodes < 100 * 619 / 10
    assert n_nodes == 600 * len(packs) + 19 * 100


def test_unrelated_requests_share_rows_but_see_nothing_of_each_other() -> None:
    requests = [Request(tokens=(10 * i, *range(10 * i, 10 * i + 9)), n_scored=1) for i in range(8)]
    (one,) = pack(requests, 1000)
    assert one.tokens.shape[0] == 1 and one.tokens.shape[1] == 8 * 9 <= ROW_TOKENS
    assert all(len(seen_by(one, scored.nodes[0])) == 9 for scored in one.scored)
    assert not one.is_chain


def test_padding_sees_only_itself() -> None:
    requests = [
        Request(tokens=tuple(range(begin, begin + n)), n_scored=1) for begin, n in ((0, 200), (300, 190))
    ]
    (one,) = pack(requests, 1000)
    assert one.tokens.shape == (2, 199) and one.n_nodes == 199 + 189
    assert seen_by(one, 2 * 199 - 1).tolist() == [2 * 199 - 1]


def test_nothing_to_do_is_no_pack() -> None:
    assert pack([], 100) == []
