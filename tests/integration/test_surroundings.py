"""Odd surroundings, with real processes: locales, streams that are full or closed, folders, other users.

Each ends with one sentence or with the work done, never with a traceback, and what was recorded stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faqbench.cli import main
from faqbench.cli.surroundings import Stream
from faqbench.records import find_runs

from .conftest import SOURCE, Forks, Workplace

NOBODY = 65534
# An ordinary user who happens to be called root: no capability, and so no right to what others own.
WITHOUT_PRIVILEGES = (
    "import ctypes, struct; "
    "assert ctypes.CDLL(None).capset(struct.pack('Ii', 0x20080522, 0), bytes(24)) == 0"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def faqbench(place: Workplace, *arguments: str, shell: str = "", **env: str):
    """Run `python -m faqbench` in a shell, whose words after the command are `shell`."""
    command = [sys.executable, "-m", "faqbench", *arguments]
    return subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command],
        cwd=place.root,
        env=os.environ | {"FAQBENCH_CACHE": str(place.root / "cache"), "PYTHONPATH": SOURCE, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize("encoding", ["", "ascii", "latin-1"])
def test_in_a_locale_that_is_not_utf8_files_are_utf8_all_the_same(workplace, encoding):
    corpus = workplace.root / "müller"
    corpus.mkdir()
    (corpus / "experiment").mkdir()
    (corpus / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nmodel: {notes: 'naïve 你好'}\n", encoding="utf-8"
    )
    odd = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    odd |= {"PYTHONIOENCODING": encoding} if encoding else {}
    done = faqbench(workplace, "--config-dir", "müller", "experiment=mine", "--cfg", "job", **odd)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "notes: " in done.stdout
    assert "你好" in done.stdout or "na?ve ??" in done.stdout or "na\ufffdve ??" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_standard_output_that_is_full_is_no_end_of_the_work(workplace):
    done = faqbench(workplace, "quant=rtn", *workplace.cell, shell=">/dev/full")
    assert [r.status for r in find_runs(workplace.runs)[0]] == ["finished"]
    assert "Traceback" not in done.stderr and done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("faqbench: ")]
    assert "standard output could not be written (No space left on device)" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_stream_of_errors_that_is_full_is_no_end_of_the_work(forks: Forks, workplace):
    full = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    done = forks.run(workplace, "quant=rtn", *workplace.cell, prelude=full)
    done.wait()
    assert [r.status for r in find_runs(workplace.runs)[0]] == ["finished"]
    assert "Traceback" not in done.output


@pytest.mark.parametrize("shell", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_end_of_the_work(workplace, shell):
    done = faqbench(workplace, "ls", shell=shell)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_folder_that_was_removed_is_one_sentence(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for arguments in (["quant=rtn"], ["ls"], ["plan"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == (
            "faqbench: The current folder does not exist any more; change to one that does.\n"
        )
    assert main(["--version"]) == 0


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("/proc/x", "there cannot be one"),
        ("calibration.txt/x", "a part of the path is a file, not a folder"),
        ("n" * 300, "the path is too long"),
        ("loop/x", "links of the path lead back to themselves"),
    ],
)
def test_a_place_where_no_runs_can_be_is_one_sentence(workplace, capsys, runs, reason):
    (workplace.root / "loop").symlink_to(workplace.root / "loop")
    assert main(["quant=rtn", *workplace.cell, f"paths.runs={runs}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("faqbench: ")]
    assert f"{reason}; set paths.runs to another folder." in line


def test_a_file_system_without_inodes_is_not_called_full(forks: Forks, workplace, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=6", "tmpfs", str(runs)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        done = forks.run(workplace, "quant=rtn", *workplace.cell)
        assert done.wait() == 2, done.output
        assert "no inodes left for new files, although it has space" in done.output
        assert "the disk is full" not in done.output and "Traceback" not in done.output
    finally:
        subprocess.run(["umount", "-l", str(runs)], check=True)


def give_away(folder):
    """Make a folder and all in it another user's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


@as_root
def test_another_users_cache_is_read_and_what_it_lacks_is_one_sentence(forks: Forks, workplace):
    assert forks.run(workplace, "quant=rtn", *workplace.cell, "paths.runs=first").wait() == 0
    give_away(workplace.root / "cache")
    done = forks.run(workplace, "quant=rtn", *workplace.cell, prelude=WITHOUT_PRIVILEGES)
    assert done.wait() == 0, done.output
    refused = forks.run(workplace, "quant=awq", *workplace.cell, prelude=WITHOUT_PRIVILEGES)
    assert refused.wait() == 2, refused.output
    assert "permission was denied; free some space or set FAQBENCH_CACHE" in refused.output
    assert "Traceback" not in done.output + refused.output
    assert {r.status for r in find_runs(workplace.runs)[0]} == {"finished", "failed"}


@as_root
def test_another_users_folder_of_runs_shows_what_is_there_and_refuses_the_rest(forks: Forks, workplace):
    assert forks.run(workplace, "quant=rtn", *workplace.cell).wait() == 0
    give_away(workplace.runs)
    assert forks.run(workplace, "ls", prelude=WITHOUT_PRIVILEGES).wait() == 0
    for arguments in (["quant=fp"], ["-m", "quant=rtn,fp"]):
        refused = forks.run(workplace, *arguments, *workplace.cell, prelude=WITHOUT_PRIVILEGES)
        assert refused.wait() == 2, refused.output
        assert "permission was denied" in refused.output and "Traceback" not in refused.output
    assert len(find_runs(workplace.runs)[0]) == 1


@as_root
def test_a_mask_that_takes_all_rights_is_one_sentence(forks: Forks, workplace):
    prelude = f"{WITHOUT_PRIVILEGES}; import os; os.umask(0o777)"
    done = forks.run(workplace, "quant=rtn", *workplace.cell, prelude=prelude)
    assert done.wait() == 2, done.output
    assert "permission was denied" in done.output and "Traceback" not in done.output


def test_a_stream_shows_what_its_encoding_lacks_as_a_question_mark(tmp_path):
    with (tmp_path / "terminal").open("w", encoding="ascii") as file:
        stream = Stream(file)
        print("naïve", file=stream)
        stream.flush()
        assert stream.error is None and stream.encoding == "ascii"
    assert (tmp_path / "terminal").read_bytes() == b"na?ve\n"
