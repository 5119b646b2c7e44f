import pytest

from faqbench.config import UserError, did_you_mean


@pytest.mark.parametrize(
    ("word", "expected"),
    [("fqa", "faq"), ("qaf", "faq"), ("AWQ", "awq"), ("rtn ", "rtn"), ("gptqq", "gptq")],
)
def test_the_nearest_spelling_is_offered(word, expected):
    known = ["awq", "faq", "rtn", "gptq"]
    assert did_you_mean(word, known) == f" Did you mean '{expected}'?"


@pytest.mark.parametrize("word", ["zzz", "", "something-else"])
def test_nothing_is_offered_where_nothing_is_near(word):
    assert did_you_mean(word, ["awq", "faq"]) == ""


def test_the_offer_keeps_the_spelling_of_what_is_known():
    assert did_you_mean("wikitext", ["WikiText-2"]) == " Did you mean 'WikiText-2'?"


def test_a_users_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
