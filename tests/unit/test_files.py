"""Files that appear whole or not at all, and the sentences of full and read-only disks."""

import errno
import stat

import pytest

from faqbench.config import UserError
from faqbench.files import atomic_directory, atomic_write, explain_os_error, remove_leftovers


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_with_everything_in_it(tmp_path):
    with atomic_directory(tmp_path / "deep" / "target") as scratch:
        (scratch / "a").write_text("1")
        assert not (tmp_path / "deep" / "target").exists()
    assert (tmp_path / "deep" / "target" / "a").read_text() == "1"
    assert names(tmp_path / "deep") == ["target"]


def test_a_folder_takes_the_place_of_an_earlier_one_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_directory(tmp_path / "target") as scratch:
            (scratch / name).write_text("")
    assert names(tmp_path / "target") == ["new"]
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing_and_keeps_what_was_there(tmp_path, error):
    with atomic_directory(tmp_path / "target") as scratch:
        (scratch / "old").write_text("")
    with pytest.raises(error), atomic_directory(tmp_path / "target") as scratch:
        (scratch / "half").write_text("")
        raise error
    assert names(tmp_path / "target") == ["old"]
    assert names(tmp_path) == ["target"]


def test_a_folder_and_a_file_can_be_read_by_whom_the_umask_allows(tmp_path, monkeypatch):
    with atomic_directory(tmp_path / "folder"):
        pass
    (tmp_path / "plain").mkdir()
    atomic_write(tmp_path / "file", b"")
    (tmp_path / "plain_file").write_bytes(b"")
    for ours, plain in (("folder", "plain"), ("file", "plain_file")):
        modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in (ours, plain)]
        assert modes[0] == modes[1]


def test_a_file_is_replaced_whole(tmp_path):
    atomic_write(tmp_path / "deep" / "file", b"old")
    atomic_write(tmp_path / "deep" / "file", b"new")
    assert (tmp_path / "deep" / "file").read_bytes() == b"new"
    assert names(tmp_path / "deep") == ["file"]


def test_a_write_that_fails_leaves_no_scratch_file(tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(OSError):
        atomic_write(tmp_path / "target", b"content")
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission was denied"),
        (errno.EPERM, "permission was denied"),
        (errno.ENOTDIR, "a part of the path is a file, not a folder"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path, number, words):
    with (
        pytest.raises(UserError) as caught,
        explain_os_error("write the record", tmp_path, "free some space"),
    ):
        raise OSError(number, "")
    assert (
        str(caught.value) == f"Could not write the record at {tmp_path}: {words}; free some space."
    )


@pytest.mark.parametrize("path", ["file", "file/inside", "file/deeper/inside"])
def test_a_file_where_a_folder_should_be_is_one_sentence(tmp_path, path):
    (tmp_path / "file").write_text("")
    target = tmp_path / path / "target"
    with (
        pytest.raises(UserError, match=r"is a file, not a folder; set paths\.runs"),
        explain_os_error("write the record", target, "set paths.runs"),
        atomic_directory(target),
    ):
        pass


def test_other_errors_of_the_system_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), explain_os_error("read", tmp_path, "nothing"):
        (tmp_path / "none").read_text()


def test_other_exceptions_pass_unchanged(tmp_path):
    with pytest.raises(KeyError), explain_os_error("read", tmp_path, "nothing"):
        raise KeyError


def leftover(path, kind):
    if kind == "folder":
        path.mkdir()
        (path / "half").write_text("")
    else:
        path.write_text("half")
    return path


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path, kind):
    leftover(tmp_path / ".target.a1b2c3d4", kind)
    for name in ("target", ".hidden", ".trash", "a.b", ".other.name"):
        leftover(tmp_path / name, kind)
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == sorted(["target", ".hidden", ".trash", "a.b", ".other.name"])


def test_the_leftovers_of_one_target_are_removed_alone(tmp_path):
    leftover(tmp_path / ".one.a1b2c3d4", "folder")
    leftover(tmp_path / ".two.a1b2c3d4", "folder")
    assert remove_leftovers(tmp_path, "one") == 1
    assert names(tmp_path) == [".two.a1b2c3d4"]


def test_what_is_being_written_is_no_leftover(tmp_path):
    with atomic_directory(tmp_path / "target") as scratch:
        (scratch / "a").write_text("1")
        assert remove_leftovers(tmp_path) == 0
    assert names(tmp_path / "target") == ["a"]


def test_a_target_that_was_moved_aside_when_its_writer_was_killed_is_put_back(tmp_path):
    leftover(tmp_path / ".target.a1b2c3d4.old", "folder")
    leftover(tmp_path / ".target.a1b2c3d4", "folder")
    assert remove_leftovers(tmp_path) == 2
    assert names(tmp_path) == ["target"]


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path / "none") == 0


def test_a_full_disk_is_recognised_where_a_library_in_rust_met_it(tmp_path):
    error = RuntimeError("Error while serializing: I/O error: No space left (os error 28)")
    with (
        pytest.raises(UserError, match="the disk is full; free some"),
        explain_os_error("write", tmp_path, "free some"),
    ):
        raise error
