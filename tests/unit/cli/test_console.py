"""What is said, and how much of it: numbers in words, the console, `-q`, `-v`, and a record of a fault."""

import io
import logging
import math
import os
from pathlib import Path

import pytest
from rich.console import Console

from faqbench import formatting
from faqbench.cli import main
from faqbench.cli.attempt import told, without_paths
from faqbench.cli.console import QuietProgress, RichProgress, VerboseProgress, console_progress, print_table
from faqbench.cli.surroundings import current_verbosity, take_verbosity, verbosity
from faqbench.formatting import ago, count, n_bytes, seconds
from faqbench.stages import PlainProgress
from faqbench.tables import Table


def test_a_table_has_a_column_per_key_and_shows_brackets_as_they_are(capsys):
    print_table(Table.of([{"run": "[bold]x[/bold]", "value": "1"}, {"run": "y", "value": "2"}]))
    text = capsys.readouterr().out
    assert "[bold]x[/bold]" in text
    assert "run" in text and "value" in text


def test_no_rows_print_nothing(capsys):
    print_table(Table.of([]))
    assert capsys.readouterr().out == ""


def progress():
    stream = io.StringIO()
    return RichProgress(Console(file=stream, force_terminal=True, width=80)), stream


def test_nested_activities_each_leave_their_line():
    bars, stream = progress()
    with bars.activity("outer", 1) as outer, bars.activity("inner", 2) as inner:
        inner(2)
        outer()
    assert "outer" in stream.getvalue() and "inner" in stream.getvalue()


def test_an_activity_that_fails_stops_the_bars_and_another_can_follow():
    bars, stream = progress()
    with pytest.raises(RuntimeError), bars.activity("first", 1):
        raise RuntimeError
    with bars.activity("second", 1) as advance:
        advance()
    assert "second" in stream.getvalue()


def test_notes_are_shown_as_they_are():
    bars, stream = progress()
    bars.note("mind [the] gap")
    assert "mind [the] gap" in stream.getvalue()


def printed(monkeypatch, rows, width, **kwargs):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, no_color=True)
    monkeypatch.setattr("faqbench.cli.console.Console", lambda **_: console)
    print_table(Table.of(rows, **kwargs))
    return stream.getvalue()


ROWS = [{f"column {i}": f"value {i}" for i in range(9)}, {f"column {i}": "" for i in range(9)}]


def test_a_wide_table_is_paragraphs_on_a_narrow_terminal(monkeypatch):
    narrow = printed(monkeypatch, ROWS, 50)
    assert "column 3: value 3" in narrow and "┃" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60  # escape codes of the bold names included
    assert "┃" in printed(monkeypatch, ROWS, 120)


def test_a_title_stands_above_its_table_on_a_line_of_its_own(monkeypatch):
    text = printed(monkeypatch, [{"a": "1"}], 80, caption="A title longer than the table [x]")
    assert "A title longer than the table [x]" in text.splitlines()[0]


def test_a_pipe_gets_one_line_per_row_and_every_value_whole(capsys):
    rows = [{"run": "r" * 150, "result": "perplexity 21.5"}, {"run": "s", "result": ""}]
    print_table(Table.of(rows, "runs"))
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "runs" and head.split() == ["run", "result"]
    assert first == f"{'r' * 150}  perplexity 21.5" and second == "s"


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
        with progress.activity("quantize", 2) as advance:
            advance(2)
        progress.note("a note")
        logging.getLogger("faqbench").warning("a warning")
    return progress, capsys.readouterr().err


def test_quiet_says_warnings_alone(capsys):
    progress, text = said(capsys, "quiet")
    assert isinstance(progress, QuietProgress)
    assert text == "a warning\n"


def test_normal_says_when_an_activity_is_done(capsys):
    progress, text = said(capsys, "normal")
    assert isinstance(progress, PlainProgress)
    assert "quantize: done in" in text and "a note" in text and "begins" not in text


def test_verbose_says_when_an_activity_begins_and_what_memory_is_held(capsys):
    progress, text = said(capsys, "verbose")
    assert isinstance(progress, VerboseProgress)
    assert "quantize: begins, 2 steps, memory" in text and "quantize: done in" in text


def test_a_quiet_listing_is_still_a_listing(tmp_path, capsys):
    assert main(["-q", "ls", f"runs={tmp_path}"]) == 0
    assert "experiment=quickstart" in capsys.readouterr().out


def test_a_fault_names_module_line_and_message_and_no_path():
    try:
        Path("/nobody/has/this.txt").read_text()
    except OSError as error:
        text = told(error)
    assert f"{__name__}, line " in text and "FileNotFoundError" in text and "this.txt" in text
    assert "/" not in text.replace("…/this.txt", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no '/home/me/models/x.bin' there", "no '…/x.bin' there"),
        ("https://example.org/a/b stays", "https://example.org/a/b stays"),
        ("a ratio of 3/4 and and/or stay", "a ratio of 3/4 and and/or stay"),
    ],
)
def test_absolute_paths_are_their_last_part(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.26, "+1.3"),
        (-1.26, "\N{MINUS SIGN}1.3"),
        (0.04, "0.0"),
        (-0.04, "0.0"),
        (-0.0, "0.0"),
        (12345.6, "+12,345.6"),
        (-math.inf, "\N{MINUS SIGN}∞"),
        (None, formatting.NONE),
    ],
)
def test_a_signed_number_has_a_true_minus_and_a_zero_has_no_sign(value, text):
    assert formatting.signed(value, 1) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.95, "9.9 s"), (119.4, "119 s"), (200, "3 min 20 s"), (7260, "2 h 01 min"),
     (200000, "2 d 07 h")],
)  # fmt: skip
def test_seconds_are_told_in_two_units(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.35e9, "2.35 GB"), (4e14, "400 TB")]
)  # fmt: skip
def test_bytes_are_told_in_the_unit_that_suits(value, text):
    assert n_bytes(value) == text


def test_counts_and_ages_read_as_english():
    assert (count(1, "entry"), count(2, "entry"), count(0, "run")) == ("1 entry", "2 entries", "0 runs")
    assert (ago(30), ago(7200), ago(-5)) == ("now", "2 h ago", "now")
