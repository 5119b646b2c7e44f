"""A toy wheel that pip really downloads, from a folder and without any index."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faqbench.assets.folder import Asset, Wheel
from faqbench.stages import PlainProgress, hash_file


@dataclass
class Notes(PlainProgress):
    """A progress that remembers what it was told."""

    activities: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def activity(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        self.activities.append(title)
        yield lambda steps=1: None

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def progress() -> Notes:
    return Notes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("FAQBENCH_CACHE", str(root))
    return root


def write_toy_wheel(path: Path, content: bytes = b"the content") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_asset/data.bin", content)
        archive.writestr("toy_asset/not_needed.py", "raise SystemExit('imported')")
        info = "toy_asset-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            # A dependency and a Python that nobody has: neither may matter.
            "Metadata-Version: 2.1\nName: toy-asset\nVersion: 1.0\n"
            "Requires-Dist: no-such-package-at-all\nRequires-Python: <3\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows, with the toy wheel in it."""
    links = tmp_path / "links"
    links.mkdir()
    write_toy_wheel(links / "toy_asset-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.fixture
def wheel(index: Path) -> Wheel:
    path = index / "toy_asset-1.0-py3-none-any.whl"
    return Wheel(project="toy-asset", version="1.0", sha256=hash_file(path), n_bytes=path.stat().st_size)


def build_toy(wheels: Sequence[Path], folder: Path) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        (folder / "data.bin").write_bytes(archive.read("toy_asset/data.bin"))


@pytest.fixture
def asset(wheel: Wheel) -> Asset:
    return Asset(
        name="toy",
        version="1.0",
        recipe=1,
        wheels=(wheel,),
        n_bytes=1000,
        activity="unpack toy",
        build=build_toy,
        terms=None,
    )
