"""Weights that another tool has quantized (`round=checkpoint`), or quantizes now (`round=external`).

Two stages stand in the place of the walk. All evaluation after them is that of any other cell.

    checkpoint   round=checkpoint: hashes the checkpoint's files
    external     round=external: the tool's own virtual environment, once; then the tool on the cell's own
                 calibration tokens, bits and group size
                     checkpoint/    what it wrote
                     facts.json     fingerprint of that; the tool's seconds and peak memory, its packages
                     log.txt        what it printed
    quantized    reports of its linears, beside the parent's

Environments lie in `<cache>/environments/<hash of what they were made of>/`, outside the stages: they are
large, and nothing in them is a result. The cell that uses one holds it, so that `cache prune` lets it be.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import faqbench.drivers
from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment, UserError, did_you_mean
from faqbench.files import atomic_directory, explain_os_error
from faqbench.foreign import read_as
from faqbench.interrupts import raise_if_interrupted
from faqbench.models import bring_packed, packed_files, packed_place, packed_source, pinned, stated_of
from faqbench.models.sources import checkpoint_folder
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.keys import Key, Keys
from faqbench.processes import locked
from faqbench.quantization import QuantizedModel, report_packed
from faqbench.stages import ENVIRONMENTS, PACKAGES, hash_file, hash_json, hash_text

CODE_VERSION = 1  # raise it when the same request would be put to a tool otherwise
_REMEDY = "free some space or set FAQBENCH_CACHE to a folder that can be written"
_LINES_SHOWN = 400  # characters of a tool's last line


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What is known of a checkpoint.

    Attributes:
        fingerprint: sha256 over its files.
        made_by: the tool and its version; None where the checkpoint does not say.
        seconds: that the tool took, where it ran here; None elsewhere, as are the next two.
        peak_memory_bytes: the tool's largest resident set.
        packages: of its environment, `name==version`.
    """

    fingerprint: str
    made_by: str | None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    packages: tuple[str, ...] = ()


def checkpoint_key(keys: Keys) -> Key | None:
    """Return the key of a checkpoint's hash; None while a hub's checkpoint is not on this machine."""
    place = packed_place(keys.experiment.quant.checkpoint)
    return None if place is None else {"version": CODE_VERSION, "files": packed_source(place)}


def build_checkpoint(cell: CellRun, folder: Path) -> None:
    """Hash a checkpoint's files."""
    place = bring_packed(cell.experiment.quant.checkpoint)
    made_by = stated_of(place).made_by
    facts = CheckpointFacts(fingerprint=_fingerprint(place), made_by=made_by)
    (folder / "facts.json").write_text(json.dumps(asdict(facts)))


def load_checkpoint(cell: CellRun, folder: Path) -> CheckpointFacts:
    """Evaluate the checkpoint from now on."""
    cell.model.use_packed(bring_packed(cell.experiment.quant.checkpoint))
    return read_as(folder / "facts.json", CheckpointFacts)


def external_key(keys: Keys) -> Key:
    """Return the key of what a tool writes."""
    experiment, given = keys.experiment, keys.given
    quant = experiment.quant
    return {
        "version": CODE_VERSION,
        "model": given["model"],
        "tokens": given["calibration"],
        "grid": [quant.bits, quant.group_size, quant.symmetric],
        "seed": experiment.calibration.seed,
        "driver": hash_file(driver_of(experiment)),
        "requirements": list(quant.external.requirements),
        "options": dict(quant.external.options),
        "device": keys.device,
    }


def driver_of(experiment: Experiment) -> Path:
    """Return the script that runs a cell's tool.

    Raises:
        UserError: when there is none of this name.
    """
    name = str(experiment.quant.external.driver)
    script = Path(name).expanduser()
    if script.suffix == ".py" and script.is_file():
        return script
    (folder,) = faqbench.drivers.__path__
    drivers = sorted(p.stem for p in Path(folder).glob("[a-z]*.py"))
    if name not in drivers:
        raise UserError(
            f"quant.external.driver={name} is not known: it is {', '.join(drivers)}, or the path of a "
            f"script.{did_you_mean(name, drivers)}"
        )
    return Path(folder) / f"{name}.py"


def build_external(cell: CellRun, folder: Path) -> None:
    """Run the tool and keep what it wrote.

    Raises:
        UserError: when its environment cannot be installed, or it fails, with the last line of its log.
    """
    experiment, external = cell.experiment, cell.experiment.quant.external
    with cell.cache.lap():  # an environment is made once, whoever asks first
        environment = _environment(cell)
    calibration: CalibrationSet = cell.get("calibration")
    into, work = folder / "checkpoint", folder / "work"
    into.mkdir()
    work.mkdir()
    save_file({"tokens": calibration.tokens.long().contiguous()}, work / "tokens.safetensors")
    quant = experiment.quant
    request = {
        "model": str(_model_folder(cell, work)),
        "tokens": str(work / "tokens.safetensors"),
        "into": str(into),
        "bits": quant.bits,
        "group_size": quant.group_size,
        "symmetric": quant.symmetric,
        "seed": experiment.calibration.seed,
        "options": dict(external.options),
    }
    (work / "request.json").write_text(json.dumps(request))
    command = [_python(environment), "-P", str(driver_of(experiment)), str(work / "request.json")]
    with cell.progress.activity(f"run {quant.name}", 1) as advance:
        start = time.perf_counter()
        code, peak = _run(command, folder / "log.txt", work)
        seconds = time.perf_counter() - start
        advance()
    tool = external.requirements[0] if external.requirements else str(external.driver)
    if code != 0 or not any(into.iterdir()):
        raise UserError(
            f"quant={quant.name}: {tool} failed on model={experiment.model.name} "
            f"({_last_line(folder / 'log.txt')}); its whole log is {_kept_log(cell, folder).name} in the "
            "cache's folder environments."
        )
    shutil.rmtree(work)
    packages = tuple((environment / PACKAGES).read_text().split())
    made_by = tool.replace("==", " ")
    facts = CheckpointFacts(
        fingerprint=_fingerprint(into),
        made_by=made_by,
        seconds=seconds,
        peak_memory_bytes=peak,
        packages=packages,
    )
    (folder / "facts.json").write_text(json.dumps(asdict(facts)))


def load_external(cell: CellRun, folder: Path) -> CheckpointFacts:
    """Evaluate what the tool wrote from now on."""
    cell.model.use_packed(folder / "checkpoint")
    return read_as(folder / "facts.json", CheckpointFacts)


def build_reports(cell: CellRun, folder: Path) -> None:
    """Report the linears of a checkpoint beside the parent's.

    Raises:
        UserError: for a checkpoint that is none of the parent's, or cannot be read.
    """
    parent = cell.model.pristine()
    packed = cell.model.packed()
    with cell.progress.activity("compare with the parent", 1) as advance:
        linears = report_packed(packed, parent.view.tensors, parent.architecture)
        advance()
    if not linears:
        raise UserError(
            f"quant={cell.experiment.quant.name}: the checkpoint quantizes no linear of the decoder blocks."
        )
    model = QuantizedModel(linears=linears, blocks=(), skipped_scales=(), n_window_cuts=0)
    (folder / "reports.json").write_text(json.dumps(asdict(model)))


def load_reports(cell: CellRun, folder: Path) -> QuantizedModel:
    """Read the reports of a checkpoint's linears."""
    cell.model.use(folder)
    return read_as(folder / "reports.json", QuantizedModel)


def describe_foreign(cell: CellRun) -> dict[str, Any]:
    """Return what a record says of the checkpoint and of who made it."""
    stage = next(stage for stage in cell.stages.values() if "checkpoint" in stage.gives)
    facts: CheckpointFacts = cell.get(stage.id)
    return {k: v for k, v in asdict(facts).items() if v not in (None, ())}


def _fingerprint(place: Path) -> str:
    return hash_json([[path.name, hash_file(path)] for path in packed_files(place)])


def _model_folder(cell: CellRun, work: Path) -> Path:
    """Return a folder that the tool can load the full precision model from."""
    folder = checkpoint_folder(pinned(cell.experiment.model))
    if folder is not None:
        return folder
    made = work / "model"
    cell.model.pristine().model.save_pretrained(made)
    cell.model.tokenizer().save_pretrained(made)
    return made


def _run(command: list[str], log: Path, scratch: Path) -> tuple[int, int]:
    """Run a command and return its exit code and its largest resident set in bytes."""
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603  the environment's own interpreter and a driver
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=scratch
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    raise_if_interrupted()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _environment(cell: CellRun) -> Path:
    """Return the folder of the tool's virtual environment, held, and installed when it is not there yet.

    Raises:
        UserError: when pip cannot install it.
    """
    requirements = list(cell.experiment.quant.external.requirements)
    made_of = [requirements, platform.python_version(), platform.machine(), sys.platform]
    folder = cell.cache.root / ENVIRONMENTS / hash_json(made_of)[:32]
    if cell.cache.hold(folder):
        return folder
    with explain_os_error("install an environment", folder, _REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock, purpose = folder.with_suffix(".lock"), cell.experiment.quant.name
        with locked(lock, purpose, lambda who: cell.progress.note(f"waiting for {who}")):
            while not cell.cache.hold(folder):  # nor pruned this moment
                _install(cell, folder, requirements)
    return folder


def _install(cell: CellRun, folder: Path, requirements: list[str]) -> None:
    log = folder.with_suffix(".log")
    named = ", ".join(requirements)
    with cell.progress.activity(f"install {named}", 1) as advance, atomic_directory(folder) as new:
        # An environment may be moved, the scripts in it may not: of these none is used.
        pip = [_python(new), "-m", "pip"]
        steps = [[sys.executable, "-m", "venv", str(new)], [*pip, "install", "--no-compile", *requirements]]
        for step in steps if requirements else [[*steps[0], "--without-pip"]]:
            code, _ = _run(step, log, folder.parent)
            if code != 0:
                raise UserError(
                    f"quant={cell.experiment.quant.name} runs {named} in an environment of its own, which "
                    f"could not be installed ({_last_line(log)}); connect to a package index, or see "
                    f"{log.name} in the cache's folder environments."
                )
        (new / PACKAGES).touch()
        if requirements:
            code, _ = _run([*pip, "freeze"], new / PACKAGES, folder.parent)
            assert code == 0, "pip lists what it has installed"
        advance()


def _python(environment: Path) -> str:
    return str(environment / "bin" / "python")


def _kept_log(cell: CellRun, folder: Path) -> Path:
    """Keep the log of a run that failed, whose stage goes, beside the environments."""
    text = (folder / "log.txt").read_bytes()
    kept = cell.cache.root / ENVIRONMENTS / f"failed-{hash_text(str(folder))[:8]}.log"
    kept.write_bytes(text)
    return kept


def _last_line(log: Path) -> str:
    """Return the last error that a log names, else its last line; pip's names of errors say nothing."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:") and "Impossible:" not in line]
    last = (errors or lines or ["it printed nothing"])[-1]
    return last.removeprefix("ERROR: ").rstrip(".")[:_LINES_SHOWN]
