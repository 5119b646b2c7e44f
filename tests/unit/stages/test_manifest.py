"""Checksums: every change is found, and unchanged files are hashed once per process."""

import json
import os
import time

import pytest

from faqbench.stages import find_damage, manifest, write_manifest

KEY = {"version": 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"x" * 100)
    write_manifest(tmp_path, KEY)
    return tmp_path


@pytest.fixture
def hashed(monkeypatch):
    names = []
    original = manifest.hash_file

    def note(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(manifest, "hash_file", note)
    return names


def settle(folder):
    """Make the files look older than a file system's clock tick."""
    past = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (past, past))
    time.sleep(0.15)  # the time of the last change of a file's facts cannot be set


def test_unchanged_files_are_hashed_once(folder, hashed):
    settle(folder)
    assert find_damage(folder, KEY) is None and hashed == ["data.bin"]
    assert find_damage(folder, KEY) is None and hashed == ["data.bin"]


def test_files_are_hashed_again_when_asked_afresh(folder, hashed):
    settle(folder)
    for _ in range(2):
        assert find_damage(folder, KEY, afresh=True) is None
    assert len(hashed) == 2


def test_a_change_that_keeps_size_and_date_is_found(folder):
    settle(folder)
    assert find_damage(folder, KEY) is None
    stat = (folder / "data.bin").stat()
    (folder / "data.bin").write_bytes(b"y" * 100)
    os.utime(folder / "data.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_damage(folder, KEY) == "data.bin does not match its checksum"


def test_files_written_this_moment_or_in_the_future_are_hashed_every_time(folder, hashed):
    future = time.time() + 3600
    os.utime(folder / "data.bin", (future, future))
    for _ in range(2):
        assert find_damage(folder, KEY) is None
    assert len(hashed) == 2


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_manifest_that_reaches_outside_its_folder_is_damage(folder, name):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"][name] = {"size": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(raw))
    assert find_damage(folder) == f"its manifest names {name}, which is not in it"
