"""What a record says of a fault: modules and lines, and no folder of the machine."""

from pathlib import Path

import pytest

from faqbench.cli.attempt import told, without_paths


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
