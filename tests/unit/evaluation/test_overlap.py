from __future__ import annotations

import random

import numpy as np
import pytest

from faqbench.evaluation.overlap import Overlap, calibration_grams, count_overlap, texts_that_overlap


def words(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(n)]


def text(n: int, seed: int) -> str:
    return " ".join(words(n, seed))


def overlapping(passages: list[str], texts: list[str]) -> int:
    return count_overlap(passages, calibration_grams(texts)).n_overlapping


def test_texts_of_their_own_do_not_overlap() -> None:
    passages = [text(200, seed) for seed in range(5)]
    found = count_overlap(passages, calibration_grams(text(300, seed) for seed in range(50, 60)))
    assert found == Overlap(n_overlapping=0, n_passages=5)


@pytest.mark.parametrize("n", [13, 40, 400])
def test_a_copied_passage_is_found_inside_a_longer_text(n: int) -> None:
    passage = text(n, 0)
    assert overlapping([passage, text(n, 1)], [f"{text(100, 2)} {passage} {text(100, 3)}"]) == 1


def test_case_punctuation_and_line_breaks_hide_nothing() -> None:
    passage = words(60, 0)
    assert overlapping([" ".join(passage)], [",\n".join(w.upper() for w in passage) + "!"]) == 1


@pytest.mark.parametrize(("n_shared", "found"), [(49, 0), (50, 1)])
def test_fifty_words_in_a_row_are_enough_in_a_long_passage(n_shared: int, found: int) -> None:
    shared = text(n_shared, 0)
    passage = f"{text(300, 1)} {shared} {text(300, 2)}"
    assert overlapping([passage], [f"{text(80, 3)} {shared} {text(80, 4)}"]) == found


def test_fifty_words_here_and_there_are_not_a_run() -> None:
    pieces = [text(20, seed) for seed in range(6)]
    passage = " ".join(f"{piece} {text(100, 50 + i)}" for i, piece in enumerate(pieces))
    assert overlapping([passage], [" , ".join([p, text(30, 90)]) for p in pieces]) == 0


def test_a_run_does_not_go_on_into_the_next_passage() -> None:
    halves = text(30, 0), text(30, 1)
    passages = [f"{text(100, 2)} {halves[0]}", f"{halves[1]} {text(100, 3)}"]
    assert overlapping(passages, [f"{halves[0]} {text(5, 4)}", halves[1]]) == 0


def test_half_of_a_short_passage_is_enough() -> None:
    passage = words(30, 0)  # 18 grams
    assert overlapping([" ".join(passage)], [" ".join(passage[:20]) + " " + text(50, 1)]) == 0
    assert overlapping([" ".join(passage)], [" ".join(passage[:21]) + " " + text(50, 1)]) == 1


def test_a_template_that_many_passages_have_is_nobodys_own() -> None:
    template = text(60, 0)
    passages = [f"{template} {text(80, 1 + i)}" for i in range(10)]
    assert overlapping(passages, [f"{template} {text(80, 50)}"]) == 0


def test_a_header_that_many_calibration_texts_have_is_nobodys_own() -> None:
    header = text(60, 0)
    texts = [f"{header} {text(80, 1 + i)}" for i in range(10)]
    assert overlapping([f"{header} {text(30, 50)}"], texts) == 0
    assert overlapping([f"{header} {text(30, 50)}"], texts[:3]) == 1


def test_a_passage_too_short_to_tell_is_not_counted() -> None:
    passage = text(12, 0)
    assert count_overlap([passage], calibration_grams([passage])) == Overlap(n_overlapping=0, n_passages=0)


def test_equal_passages_count_once() -> None:
    passages = [text(50, 0)] * 8
    assert count_overlap(passages, calibration_grams([passages[0]])) == Overlap(
        n_overlapping=1, n_passages=1
    )


def test_no_texts_overlap_with_nothing() -> None:
    assert len(calibration_grams([])) == 0
    assert overlapping([text(50, 0)], []) == 0
    assert count_overlap([], np.zeros(0, dtype=np.uint64)).n_passages == 0


def test_without_the_texts_that_overlap_no_choice_of_the_others_does() -> None:
    rng = random.Random(0)
    passages = [text(60, seed) for seed in range(20)]
    # Six texts quote one passage: common among all of them, not among three that are drawn.
    texts = [text(80, 100 + i) for i in range(30)]
    texts += [f"{passages[0]} {text(20, 200 + i)}" for i in range(6)]
    texts += [f"{text(20, 300)} {passages[1]}"]
    found = texts_that_overlap(texts, passages)
    assert found == list(range(30, 37))
    left = [t for i, t in enumerate(texts) if i not in found]
    assert all(overlapping(passages, rng.sample(left, 10)) == 0 for _ in range(5))
    assert overlapping(passages, texts[:33]) == 1


def test_nothing_to_compare_drops_nothing() -> None:
    assert texts_that_overlap([], [text(60, 0)]) == []
    assert texts_that_overlap([text(60, 0)], []) == []
