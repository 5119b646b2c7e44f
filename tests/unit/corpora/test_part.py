from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from faqbench.corpora import part_of


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
