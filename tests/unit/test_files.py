"""Files that appear whole or not at all, and the sentences of full and read-only disks."""

import errno
import json
import os
import socket
import stat

import psutil
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
        (errno.EBUSY, "the file system has it in use"),
        (errno.ENFILE, "too many files are open"),
        (errno.ENOTSUP, "the file system cannot do that"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path, number, words):
    with (
        pytest.raises(UserError) as caught,
        explain_os_error("write the record", tmp_path, "free some space"),
    ):
        raise OSError(number, "")
    assert str(caught.value) == f"Could not write the record at {tmp_path}: {words}; free some space."


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


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/x", "there cannot be one"),
        ("/proc/x/deeper", "there cannot be one"),
        ("dangling/x", "the link dangling leads to nothing that is there"),
        ("loop/x", "links of the path lead back to themselves"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, path, reason):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    target = tmp_path / path / "target"
    with (
        pytest.raises(UserError, match=f"{reason}; set into"),
        explain_os_error("write the pack", target, "set into"),
        atomic_directory(target),
    ):
        pass


def test_a_folder_in_a_files_place_is_one_sentence(tmp_path):
    (tmp_path / "target").mkdir()
    with (
        pytest.raises(UserError, match="a folder has the place of a file; set html"),
        explain_os_error("write the page", tmp_path / "target", "set html"),
    ):
        atomic_write(tmp_path / "target", b"content")


def test_another_file_that_is_missing_is_no_fault_of_the_path(tmp_path):
    target = tmp_path / "cache" / "entry"
    with pytest.raises(FileNotFoundError), explain_os_error("write", target, "nothing"):
        (tmp_path / "source" / "none").read_text()


def test_other_errors_of_the_system_pass_unchanged(tmp_path):
    with pytest.raises(OSError, match="told"), explain_os_error("read", tmp_path, "nothing"):
        raise OSError(errno.EDEADLK, "told")


def test_other_exceptions_pass_unchanged(tmp_path):
    with pytest.raises(KeyError), explain_os_error("read", tmp_path, "nothing"):
        raise KeyError


def leftover(folder, target, name="aaaaaaaa", **changes):
    """What a process that was killed while it wrote a target left."""
    path = folder / f".faqbench-scratch-{name}"
    path.mkdir()
    (path / "new").write_text("half")
    owner = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": 1.0, "target": target}
    (path / "owner.json").write_text(json.dumps(owner | changes))
    return path


def test_what_a_killed_writer_left_is_removed(tmp_path):
    leftover(tmp_path, "target")
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == []


def test_the_leftovers_of_one_target_are_removed_alone(tmp_path):
    leftover(tmp_path, "one", "aaaaaaaa")
    kept = leftover(tmp_path, "two", "bbbbbbbb")
    assert remove_leftovers(tmp_path, "one") == 1
    assert names(tmp_path) == [kept.name]


@pytest.mark.parametrize(
    "name", [".env.template", ".bashrc.20240101", ".ssh.20240101", ".faqbench-scratch-aaaaaaaa"]
)
def test_a_users_files_and_folders_are_never_taken_for_leftovers(tmp_path, name):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / name).write_text("mine")
    (tmp_path / "folder" / name).mkdir(parents=True)
    (tmp_path / "folder" / name / "key").write_text("mine")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to(leftover(tmp_path, "target", "bbbbbbbb"))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    for folder in ("file", "folder", "link", "pipe"):
        assert remove_leftovers(tmp_path / folder) == 0
        assert names(tmp_path / folder) == [name]


@pytest.mark.parametrize("marker", [{"target": "../outside"}, {"pid": "1"}, {"started": None}, {"more": 1}])
def test_a_marker_of_somebody_elses_is_none(tmp_path, marker):
    leftover(tmp_path, **{"target": "target"} | marker)
    assert remove_leftovers(tmp_path) == 0


def test_a_pipe_in_the_markers_place_is_waited_for_by_nobody(tmp_path):
    path = leftover(tmp_path, "target")
    (path / "owner.json").unlink()
    os.mkfifo(path / "owner.json")
    assert remove_leftovers(tmp_path) == 0


def test_what_a_living_process_writes_is_no_leftover_even_without_locks(tmp_path):
    me = psutil.Process()
    leftover(tmp_path, "target", pid=me.pid, started=me.create_time())
    assert remove_leftovers(tmp_path) == 0


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path):
    leftover(tmp_path, "target", pid=os.getpid())
    assert remove_leftovers(tmp_path) == 1


def test_what_is_being_written_is_no_leftover(tmp_path):
    with atomic_directory(tmp_path / "target") as scratch:
        (scratch / "a").write_text("1")
        assert remove_leftovers(tmp_path) == 0
    assert names(tmp_path / "target") == ["a"]


def test_a_target_that_was_set_aside_when_its_writer_was_killed_is_put_back(tmp_path):
    path = leftover(tmp_path, "target")
    (path / "old").mkdir()
    (path / "old" / "work").write_text("mine")
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == ["target"] and names(tmp_path / "target") == ["work"]


def test_a_link_in_a_targets_place_is_replaced_and_never_followed(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "work").write_text("mine")
    (tmp_path / "target").symlink_to(tmp_path / "big")
    with atomic_directory(tmp_path / "target") as scratch:
        (scratch / "new").write_text("")
    assert names(tmp_path / "target") == ["new"] and names(tmp_path / "big") == ["work"]


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path / "none") == 0


def test_a_full_disk_is_recognised_where_a_library_in_rust_met_it(tmp_path):
    error = RuntimeError("Error while serializing: I/O error: No space left (os error 28)")
    with (
        pytest.raises(UserError, match="the disk is full; free some"),
        explain_os_error("write", tmp_path, "free some"),
    ):
        raise error


def test_what_a_folder_holds_can_be_read_by_all_whom_the_mask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_directory(tmp_path / "entry") as scratch:
            (scratch / "inner").mkdir(mode=0o700)
            (scratch / "inner" / "private").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [oct(p.stat().st_mode & 0o777) for p in (tmp_path / "entry").rglob("*")]
    assert sorted(modes) == ["0o644", "0o755"]
