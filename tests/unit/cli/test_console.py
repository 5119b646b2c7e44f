import io

import pytest
from rich.console import Console

from faqbench.cli.console import RichProgress, print_table


def test_a_table_has_a_column_per_key_and_shows_brackets_as_they_are(capsys):
    print_table([{"run": "[bold]x[/bold]", "value": "1"}, {"run": "y", "value": "2"}])
    text = capsys.readouterr().out
    assert "[bold]x[/bold]" in text
    assert "run" in text and "value" in text


def test_no_rows_print_nothing(capsys):
    print_table([])
    assert capsys.readouterr().out == ""


def progress():
    stream = io.StringIO()
    return RichProgress(Console(file=stream, force_terminal=True, width=80)), stream


def test_nested_stages_each_leave_their_line():
    bars, stream = progress()
    with bars.stage("outer", 1) as outer, bars.stage("inner", 2) as inner:
        inner(2)
        outer()
    assert "outer" in stream.getvalue() and "inner" in stream.getvalue()


def test_a_stage_that_fails_stops_the_bars_and_another_can_follow():
    bars, stream = progress()
    with pytest.raises(RuntimeError), bars.stage("first", 1):
        raise RuntimeError
    with bars.stage("second", 1) as advance:
        advance()
    assert "second" in stream.getvalue()


def test_notes_are_shown_as_they_are():
    bars, stream = progress()
    bars.note("mind [the] gap")
    assert "mind [the] gap" in stream.getvalue()
