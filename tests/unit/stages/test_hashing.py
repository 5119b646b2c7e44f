import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faqbench.stages import hash_file, hash_json, hash_text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
def test_the_order_of_keys_does_not_count(value):
    assert hash_json(value) == hash_json(dict(reversed(value.items())))


def test_values_that_look_alike_differ():
    values = [1, "1", [1], {"1": 1}, True, None, "None", [], {}]
    assert len({hash_json(v) for v in values}) == len(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_numbers_that_json_cannot_hold_are_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        hash_json(value)


def test_what_is_not_json_is_refused():
    with pytest.raises(TypeError):
        hash_json({"x": object()})


def test_files_and_texts_hash_as_sha256sum_does(tmp_path):
    (tmp_path / "f").write_text("é")
    expected = hashlib.sha256("é".encode()).hexdigest()
    assert hash_file(tmp_path / "f") == hash_text("é") == expected
