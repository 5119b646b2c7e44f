"""What lies in the cache, what goes first when it is full, and what never goes."""

import os
import shutil
import time

import pytest

from faqbench.stages import StageCache, evict, find_damaged, list_entries, remove_entry, tidy

HOLD = """
from pathlib import Path
from faqbench.stages import StageCache
cache = StageCache(Path({root!r}))
assert cache.find("toy", {{"name": {name!r}}}) is not None
print("ready", flush=True)
input()
"""
BUILD = """
import time
from pathlib import Path
from faqbench.stages import StageCache
def build(folder):
    (folder / "half.bin").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    time.sleep(3600)
StageCache(Path({root!r})).get("toy", {{"name": "half"}}, build)
"""


def titles(root):
    return [e.name for e in list_entries(root)]


def used(path, seconds_ago):
    stamp = time.time() - seconds_ago
    os.utime(path, (stamp, stamp))


def test_an_entry_is_listed_with_its_size_and_its_times(root, make):
    before = time.time()
    path = make("a", 1000)
    used(path, 3600)
    (entry,) = list_entries(root)
    assert entry.title == f"toy/{path.name}" and entry.n_bytes > 1000
    assert before - 1 <= entry.made <= time.time() and 3500 < time.time() - entry.used < 7200


def test_assets_are_listed_and_locks_and_halves_are_not(root, make):
    make("a")
    (root / "assets" / "model-1").mkdir(parents=True)
    (root / "assets" / "model-1" / "weights").write_text("w")
    (root / "stages" / "toy" / ".b.x1y2z3w4").mkdir()
    assert [(e.stage, e.n_bytes > 0) for e in list_entries(root)] == [("assets", True), ("toy", True)]


def test_an_empty_cache_has_no_entries(root):
    assert list_entries(root) == [] and evict(root, 0) == [] and tidy(root) == 0


def test_asking_for_an_entry_is_using_it(root, make):
    path = make("a")
    used(path, 3600)
    make("a")
    (entry,) = list_entries(root)
    assert time.time() - entry.used < 3600


def test_what_was_used_least_recently_goes_first(root, make):
    old, new, middle = make("old"), make("new"), make("middle")
    for path, age in ((old, 300), (middle, 200), (new, 100)):
        used(path, age)
    size = list_entries(root)[0].n_bytes
    assert [e.name for e in evict(root, 2 * size + 10)] == [old.name]
    assert [e.name for e in evict(root, size + 10)] == [middle.name]
    assert titles(root) == [new.name]


def test_a_stamp_of_the_future_counts_as_now(root, make):
    future, old = make("future"), make("old")
    used(future, -(10**6))
    used(old, 10**6)
    evict(root, list_entries(root)[0].n_bytes + 10)
    assert titles(root) == [future.name]


def test_assets_are_never_evicted(root, make):
    (root / "assets" / "model-1").mkdir(parents=True)
    (root / "assets" / "model-1" / "weights").write_bytes(b"x" * 10**6)
    make("a")
    assert len(evict(root, 0)) == 1
    assert [e.stage for e in list_entries(root)] == ["assets"]


def test_what_another_process_holds_is_not_evicted_until_that_process_ends(root, make, process):
    held, free = make("held"), make("free")
    used(held, 1000)
    child = process(HOLD.format(root=str(root), name="held"))
    assert [e.name for e in evict(root, 0)] == [free.name]
    assert titles(root) == [held.name]
    child.kill()
    child.wait()
    assert [e.name for e in evict(root, 0)] == [held.name]


def test_what_this_process_holds_is_not_evicted_until_its_cell_ends(root, make):
    make("a")
    with StageCache(root) as cache:
        assert cache.find("toy", {"name": "a"}) is not None
        assert evict(root, 0) == []
    assert len(evict(root, 0)) == 1


def test_a_cell_that_fills_its_budget_keeps_what_it_holds_and_drops_the_rest(root, make):
    make("before", 1000)

    def build(folder):
        (folder / "data.bin").write_bytes(b"x" * 1000)

    with StageCache(root, max_bytes=500) as cache:
        kept = [cache.get("toy", {"name": n}, build).path for n in ("one", "two")]
        assert sorted(titles(root)) == sorted(p.name for p in kept)
        assert all((p / "data.bin").is_file() for p in kept)


def test_an_entry_that_was_evicted_is_made_again(root, make):
    path = make("a")
    evict(root, 0)
    assert not path.exists()
    assert make("a") == path and path.is_dir()


def test_an_entry_that_took_anothers_place_is_held_anew(root, make):
    path = make("a")
    with StageCache(root) as cache:
        cache.find("toy", {"name": "a"})
        copy = path.with_name("copy")
        shutil.copytree(path, copy)
        shutil.rmtree(path)
        copy.rename(path)
        assert cache.find("toy", {"name": "a"}) == path
        assert evict(root, 0) == []


def test_removing_one_entry_removes_it_alone(root, make):
    make("a")
    make("b")
    first, second = list_entries(root)
    assert remove_entry(first)
    assert titles(root) == [second.name]
    assert not remove_entry(first)


def test_every_damaged_entry_is_found(root, make):
    sound, damaged = make("sound"), make("damaged")
    data = damaged / "data.bin"
    stat = data.stat()
    data.write_bytes(b"X" + data.read_bytes()[1:])
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk would
    found = {e.name: damage for e, damage in find_damaged(list_entries(root))}
    assert found == {sound.name: None, damaged.name: "data.bin does not match its checksum"}


def test_what_a_killed_builder_left_is_removed_and_what_a_living_one_makes_is_not(root, process):
    child = process(BUILD.format(root=str(root)))
    scratch = [p for p in (root / "stages" / "toy").iterdir() if p.is_dir()]
    assert len(scratch) == 1 and tidy(root) == 0 and scratch[0].is_dir()
    child.kill()
    child.wait()
    assert tidy(root) == 1 and not scratch[0].exists()


def test_the_next_builder_of_an_entry_removes_what_a_killed_one_left(root, process, make):
    child = process(BUILD.format(root=str(root)))
    child.kill()
    child.wait()
    path = make("half")
    assert [p for p in path.parent.iterdir() if p.is_dir()] == [path]


@pytest.mark.parametrize(("age", "removed"), [(10, 0), (10**6, 1)])
def test_a_lock_without_an_entry_goes_when_it_is_old(root, make, age, removed):
    path = make("a")
    shutil.rmtree(path)
    used(path.with_suffix(".lock"), age)
    assert tidy(root) == removed


def test_what_a_user_keeps_in_the_folder_is_neither_an_entry_nor_a_lock(root, make):
    make("a")
    project = root / "stages" / "toy" / "project"
    project.mkdir()
    (project / "manifest.json").write_text("{}")
    lock = root / "stages" / "toy" / "poetry.lock"
    lock.write_text("mine")
    used(lock, 10 * 86400)
    assert tidy(root) == 0 and [e.name for e in evict(root, 0)] != ["project"]
    assert project.is_dir() and lock.read_text() == "mine"
