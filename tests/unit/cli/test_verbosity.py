"""`-q` and `-v`: how much is said, in this process and those that it starts."""

import logging
import os

import pytest

from faqbench.cli import main
from faqbench.cli.console import QuietProgress, VerboseProgress, console_progress
from faqbench.cli.surroundings import current_verbosity, take_verbosity, verbosity
from faqbench.stages import PlainProgress


@pytest.mark.parametrize(
    ("arguments", "rest", "level"),
    [
        (["-q", "ls"], ["ls"], "quiet"),
        (["quant=faq", "--verbose"], ["quant=faq"], "verbose"),
        (["-m", "-q", "bits=3", "-v"], ["-m", "bits=3"], "verbose"),
        (["ls"], ["ls"], "normal"),
    ],
)
def test_the_flags_are_taken_wherever_they_stand(arguments, rest, level):
    assert take_verbosity(arguments) == (rest, level)


def test_the_level_reaches_child_processes_and_ends_with_the_command(monkeypatch):
    monkeypatch.delenv("FAQBENCH_VERBOSITY", raising=False)
    with verbosity("quiet"):
        assert os.environ["FAQBENCH_VERBOSITY"] == "quiet" and current_verbosity() == "quiet"
    assert "FAQBENCH_VERBOSITY" not in os.environ
    monkeypatch.setenv("FAQBENCH_VERBOSITY", "loud")
    assert current_verbosity() == "normal"


def said(capsys, level):
    with verbosity(level):
        progress = console_progress()
        with progress.stage("quantize", 2) as advance:
            advance(2)
        progress.note("a note")
        logging.getLogger("faqbench").warning("a warning")
    return progress, capsys.readouterr().err


def test_quiet_says_warnings_alone(capsys):
    progress, text = said(capsys, "quiet")
    assert isinstance(progress, QuietProgress)
    assert text == "a warning\n"


def test_normal_says_when_a_stage_is_done(capsys):
    progress, text = said(capsys, "normal")
    assert isinstance(progress, PlainProgress)
    assert "quantize: done in" in text and "a note" in text and "begins" not in text


def test_verbose_says_when_a_stage_begins_and_what_memory_is_held(capsys):
    progress, text = said(capsys, "verbose")
    assert isinstance(progress, VerboseProgress)
    assert "quantize: begins, 2 steps, memory" in text and "quantize: done in" in text


def test_a_quiet_listing_is_still_a_listing(tmp_path, capsys):
    assert main(["-q", "ls", f"runs={tmp_path}"]) == 0
    assert "experiment=quickstart" in capsys.readouterr().out
