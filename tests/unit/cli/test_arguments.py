import pytest

from faqbench.cli.arguments import read_arguments
from faqbench.config import UserError

KEYS = {"runs": "the folder of runs", "name": "the report"}


def test_words_and_pairs_are_told_apart_whatever_their_order():
    found = read_arguments("show", ["runs=a", "RUN", "name=x=y"], KEYS, n_words=1)
    assert found == (["RUN"], {"runs": "a", "name": "x=y"})


def test_an_unknown_key_gets_those_that_are_known_and_the_nearest():
    with pytest.raises(UserError) as caught:
        read_arguments("show", ["rnus=a"], KEYS)
    text = "show: unknown key rnus; allowed: runs, name. Did you mean 'runs'?"
    assert str(caught.value) == text


def test_a_word_too_many_is_named():
    with pytest.raises(UserError, match="show: 'second' is not a key=value argument"):
        read_arguments("show", ["first", "second"], KEYS, n_words=1)


def test_a_verb_without_keys_says_so():
    with pytest.raises(UserError, match="unknown key x; allowed: none"):
        read_arguments("fetch", ["x=1"], {})
