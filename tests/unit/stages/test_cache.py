"""The stage cache: computed once, checked when read, recomputed when damaged; its lines and checksums."""

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faqbench.config import UserError
from faqbench.processes import locked
from faqbench.stages import (
    PlainProgress,
    StageCache,
    cache_root,
    find_damage,
    hash_file,
    hash_json,
    hash_text,
    manifest,
    write_manifest,
)

KEY = {"version": 1, "weights": "abc"}


class Builder:
    """Writes one small file and counts how often it was asked to."""

    def __init__(self, text="result"):
        self.text, self.calls = text, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "parts").mkdir()
        (folder / "parts" / "data.txt").write_text(self.text)


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path / "cache")


def content(entry):
    return (entry.path / "parts" / "data.txt").read_text()


def test_a_stage_is_computed_once_and_found_after_that(cache):
    build = Builder()
    first, second = (cache.get("toy", KEY, build), cache.get("toy", dict(reversed(KEY.items())), build))
    assert (first.cached, second.cached, build.calls) == (False, True, 1)
    assert content(second) == "result"


def test_another_key_and_another_stage_are_other_entries(cache):
    build = Builder()
    cache.get("toy", KEY, build)
    assert not cache.get("toy", {**KEY, "version": 2}, build).cached
    assert not cache.get("other", KEY, build).cached


def damage(how, path):
    data, manifest = path / "parts" / "data.txt", path / "manifest.json"
    match how:
        case "changed":
            data.write_text("r3sult")
        case "truncated":
            data.write_text("res")
        case "missing":
            data.unlink()
        case "manifest truncated":
            manifest.write_text(manifest.read_text()[:20])
        case "manifest missing":
            manifest.unlink()
        case "manifest of another kind":
            manifest.write_text(json.dumps({"key": KEY, "files": ["parts/data.txt"]}))
        case "manifest a list":
            manifest.write_text("[]")
        case "manifest of another key":
            raw = json.loads(manifest.read_text())
            manifest.write_text(json.dumps(raw | {"key": {"foreign": True}}))


HOW = [
    "changed",
    "truncated",
    "missing",
    "manifest truncated",
    "manifest missing",
    "manifest of another kind",
    "manifest a list",
    "manifest of another key",
]


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_entry_is_reported_and_computed_again(cache, caplog, how, monkeypatch):
    monkeypatch.setattr(logging.getLogger("faqbench"), "propagate", True)
    build = Builder()
    damage(how, cache.get("toy", KEY, build).path)
    again = cache.get("toy", KEY, build)
    assert (again.cached, content(again), build.calls) == (False, "result", 2)
    assert "toy entry" in caplog.text and "damaged" in caplog.text


@pytest.mark.parametrize("how", HOW)
def test_damage_is_said_in_words(cache, how):
    path = cache.get("toy", KEY, Builder()).path
    assert find_damage(path, KEY) is None
    damage(how, path)
    assert find_damage(path, KEY)


def test_a_build_that_fails_leaves_no_entry_and_the_next_one_may_succeed(cache):
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get("toy", KEY, fail)
    assert not cache.entry_path("toy", KEY).exists()
    assert content(cache.get("toy", KEY, Builder())) == "result"


def test_a_cache_that_cannot_be_written_is_one_sentence_that_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache of stage 'toy' at .* FAQBENCH_CACHE"):
        StageCache(tmp_path / "file").get("toy", KEY, Builder())


def test_a_key_with_nan_is_refused_rather_than_cached(cache):
    with pytest.raises(ValueError, match="JSON"):
        cache.get("toy", {"value": float("nan")}, Builder())


def test_the_root_is_faqbench_cache_where_it_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path))
    assert cache_root() == tmp_path == StageCache().root
    monkeypatch.delenv("FAQBENCH_CACHE")
    assert cache_root().name == "faqbench"


def _ask(root, log, barrier):
    def build(folder: Path) -> None:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        (folder / "data.txt").write_text("result")

    barrier.wait()
    entry = StageCache(Path(root)).get("toy", KEY, build)
    assert (entry.path / "data.txt").read_text() == "result"


def test_two_processes_that_ask_at_once_compute_once(tmp_path):
    # fork: the children need nothing but this function, and start at once.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    log = tmp_path / "builds"
    processes = [context.Process(target=_ask, args=(tmp_path / "cache", log, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=1800)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_a_second_process_that_waits_for_a_stage_is_told_for_which_run(tmp_path, caplog):
    root, seen = tmp_path / "cache", []
    lock = StageCache(root).entry_path("stage", KEY).with_suffix(".lock")

    def build(folder):
        words = f"process {os.getpid()} on {platform.node()} for tiny-rtn-1"
        assert lock.read_text() == words
        waiting = threading.Thread(target=StageCache(root).get, args=("stage", KEY, pytest.fail))
        waiting.start()
        seen.append(waiting)
        while not caplog.messages:
            time.sleep(0.01)
        assert caplog.messages == [f"stage: waiting for {words}, which makes it"]

    StageCache(root, owner="tiny-rtn-1").get("stage", KEY, build)
    seen[0].join()


def test_what_lies_in_a_lock_is_shown_as_plain_characters(tmp_path):
    path, said = tmp_path / "lock", []
    path.write_text("\x1b[2J process 1")
    with path.open("r+") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)

        def wait(holder):
            said.append(holder)
            fcntl.flock(theirs, fcntl.LOCK_UN)

        with locked(path, "", wait) as waited:
            assert waited and said == ["?[2J process 1"]


def test_the_entrys_place_depends_on_the_key_alone(cache):
    path = cache.entry_path("toy", KEY)
    assert path.name == hash_json(KEY)[:32]
    assert path.parent == cache.root / "stages" / "toy"


def test_a_lap_leaves_out_those_inside_it(tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=iter([0.0, 1.0, 3.0, 10.0]).__next__)
    monkeypatch.setattr("faqbench.stages.cache.time", clock)
    stages = StageCache(tmp_path)
    with stages.lap() as outer, stages.lap() as inner:
        pass
    assert (outer.seconds, inner.seconds) == (8.0, 2.0)


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("faqbench"), "propagate", True)
    caplog.set_level(logging.INFO, logger="faqbench")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_stage_ends_with_one_line(lines):
    with PlainProgress().activity("count", 2) as advance:
        advance()
        advance()
    (line,) = lines()
    assert line.startswith("count: done in")


def test_a_slow_stage_says_how_far_it_is_and_what_is_left(lines):
    with PlainProgress(interval_seconds=0).activity("count", 4) as advance:
        advance(3)
        advance()
    assert lines()[0].startswith("count: 3/4, about ")
    assert len(lines()) == 2


def test_a_stage_that_fails_says_nothing_of_being_done(lines):
    with pytest.raises(RuntimeError), PlainProgress().activity("count", 1):
        raise RuntimeError
    assert lines() == []


def test_a_note_is_a_warning_in_the_log(lines, caplog):
    PlainProgress().note("look: 100 %")
    assert lines() == ["look: 100 %"]
    assert caplog.records[0].levelno == logging.WARNING


MADE_OF = {"version": 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"x" * 100)
    write_manifest(tmp_path, MADE_OF)
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
    assert find_damage(folder, MADE_OF) is None and hashed == ["data.bin"]
    assert find_damage(folder, MADE_OF) is None and hashed == ["data.bin"]


def test_files_are_hashed_again_when_asked_afresh(folder, hashed):
    settle(folder)
    for _ in range(2):
        assert find_damage(folder, MADE_OF, afresh=True) is None
    assert len(hashed) == 2


def test_a_change_that_keeps_size_and_date_is_found(folder):
    settle(folder)
    assert find_damage(folder, MADE_OF) is None
    stat = (folder / "data.bin").stat()
    (folder / "data.bin").write_bytes(b"y" * 100)
    os.utime(folder / "data.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_damage(folder, MADE_OF) == "data.bin does not match its checksum"


def test_files_written_this_moment_or_in_the_future_are_hashed_every_time(folder, hashed):
    future = time.time() + 3600
    os.utime(folder / "data.bin", (future, future))
    for _ in range(2):
        assert find_damage(folder, MADE_OF) is None
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
