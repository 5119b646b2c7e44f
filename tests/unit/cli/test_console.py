import io

import pytest
from rich.console import Console

from faqbench.cli.console import RichProgress, print_table
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
