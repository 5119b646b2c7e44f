import logging

import pytest

from faqbench.stages import PlainProgress


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("faqbench"), "propagate", True)
    caplog.set_level(logging.INFO, logger="faqbench")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_stage_ends_with_one_line(lines):
    with PlainProgress().stage("count", 2) as advance:
        advance()
        advance()
    (line,) = lines()
    assert line.startswith("count: done in")


def test_a_slow_stage_says_how_far_it_is_and_what_is_left(lines):
    with PlainProgress(interval_seconds=0).stage("count", 4) as advance:
        advance(3)
        advance()
    assert lines()[0].startswith("count: 3/4, about ")
    assert len(lines()) == 2


def test_a_stage_that_fails_says_nothing_of_being_done(lines):
    with pytest.raises(RuntimeError), PlainProgress().stage("count", 1):
        raise RuntimeError
    assert lines() == []


def test_a_note_is_a_warning_in_the_log(lines, caplog):
    PlainProgress().note("look: 100 %")
    assert lines() == ["look: 100 %"]
    assert caplog.records[0].levelno == logging.WARNING
