"""Checksums: every change is found, and unchanged files are hashed once per process."""

import hashlib
import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faqbench.stages import find_damage, hash_file, hash_json, hash_text, manifest, write_manifest

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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
def test_the_order_of_keys_does_not_count(value):
    assert hash_json(value) == hash_json(dict(reversed(value.items())))


def test_values_that_look_alike_differ():
    values = [1, "1", [1], {"1": 1}, True, None, "None", [], {}]
    assert len({hash_json(v) for v in values}) == len(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_numbers_that_json_cannot_hold_are_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        hash_json(value)


def test_what_is_not_json_is_refused():
    with pytest.raises(TypeError):
        hash_json({"x": object()})


def test_files_and_texts_hash_as_sha256sum_does(tmp_path):
    (tmp_path / "f").write_text("é")
    expected = hashlib.sha256("é".encode()).hexdigest()
    assert hash_file(tmp_path / "f") == hash_text("é") == expected
