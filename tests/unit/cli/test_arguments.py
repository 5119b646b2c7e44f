from pathlib import Path
from typing import Literal

import pytest

from faqbench.cli.arguments import Flag, Keys, KeysOfSelection, Number, read_arguments
from faqbench.config import UserError


class ShowKeys(KeysOfSelection):
    name: str = "all"
    mode: Literal["online", "offline"] = "online"
    dry: Flag = False
    days: Number | None = None


def test_words_and_pairs_are_told_apart_whatever_their_order():
    words, keys = read_arguments("show", ["runs=a", "RUN", "name=x=y"], ShowKeys, n_words=1)
    assert words == ["RUN"] and (keys.runs, keys.name) == (Path("a"), "x=y")


def test_values_are_what_they_mean():
    typed = ["select='a b' bits=3", "mode=offline", "dry=true", "days=1.5"]
    _, keys = read_arguments("show", typed, ShowKeys)
    read = (keys.select, keys.mode, keys.dry, keys.days)
    assert read == (("a b", "bits=3"), "offline", True, 1.5)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("dry=yes", "show: dry=yes is not allowed: true or false."),
        ("days=inf", "show: days=inf is not allowed: a number that is not negative."),
        ("mode=ofline", "show: mode=ofline is not allowed: online, offline. Did you mean 'offline'?"),
        ("select='a", "show: select='a is not allowed: patterns on run ids and key=value filters, "
         "quotes in pairs."),
        ("rnus=a", "show: unknown key rnus; allowed: runs, select, name, mode, dry, days. "
         "Did you mean 'runs'?"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_gets_the_key_the_value_and_what_is(argument, sentence):
    with pytest.raises(UserError) as caught:
        read_arguments("show", [argument], ShowKeys)
    assert str(caught.value) == sentence


def test_a_word_too_many_is_named():
    with pytest.raises(UserError, match="show: 'second' is not a key=value argument"):
        read_arguments("show", ["first", "second"], ShowKeys, n_words=1)


def test_a_verb_without_keys_says_so():
    with pytest.raises(UserError, match="unknown key x; allowed: none"):
        read_arguments("fetch", ["x=1"], Keys)
