"""Move runs out of sight, not out of the world: rm RUN … | rm select=…; rm restore=RUN brings one back.

A run goes to runs/.trash and is in no table, report or sweep any more; asking for its cell runs it again,
from what is cached. empty=true deletes what lies in the trash for good.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from faqbench.cli.arguments import Flag, KeysOfSelection, read_arguments
from faqbench.cli.console import print_damaged
from faqbench.cli.show import find_name
from faqbench.config import UserError, did_you_mean
from faqbench.config.identity import needs_calibration, quantizes
from faqbench.files import explain_os_error
from faqbench.foreign import visible
from faqbench.formatting import count
from faqbench.records import find_heads, is_packed
from faqbench.report import ReportRequest
from faqbench.report.selection import select_runs

_TRASH = ".trash"
_THROWN_AWAY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*@\d{8}T\d{6}(-\d+)?")
_GRID_KEYS = ("bits", "group_size", "symmetric", "window", "gamma")
_CALIBRATION_KEYS = ("seed", "calibration", "scenario")
_REMEDY = "set runs to a folder that can be written"


class RemoveKeys(KeysOfSelection):
    """What else goes, or comes back.

    Attributes:
        restore: the name of a run in the trash.
        empty: delete what lies in the trash for good.
    """

    restore: str | None = None
    empty: Flag = False


def run(arguments: list[str]) -> int:
    """Move runs to the trash, or out of it."""
    words, keys = read_arguments("rm", arguments, RemoveKeys, n_words=None)
    runs, is_selective = keys.runs, "select" in keys.model_fields_set
    if keys.empty:
        return _empty(runs)
    if keys.restore is not None:
        return _restore(runs, keys.restore)
    names = [find_name(runs, word) for word in words]
    if is_selective:
        names += _selected(runs, keys.select)
    if not names and not is_selective:
        raise UserError("rm needs the name of a run, or select=…; `faqbench ls` lists the runs.")
    packed = [name for name in names if is_packed(runs / name)]
    if packed:
        raise UserError(
            f"{packed[0]} lies in a pack of runs, of which none is removed by itself; "
            "`faqbench compact` with select= writes a pack of the others."
        )
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    trash = _trash(runs)
    with explain_os_error("move runs to the trash", trash, _REMEDY):
        trash.mkdir(exist_ok=True)
        for name in dict.fromkeys(names):
            (runs / name).rename(_free(trash / f"{name}@{stamp}"))
            print(f"{name} is in {trash}")
    return 0


def _selected(runs: Path, select: tuple[str, ...]) -> list[str]:
    request = ReportRequest(runs=runs, reports=Path("reports"), name="", select=select)
    selection = select_runs(request, find_heads)
    print_damaged(selection.damaged)
    records = [*selection.finished, *selection.failed]
    keys = [entry.partition("=")[0] for entry in request.select if "=" in entry]
    taken = [r.run_id for r in records if all(_decides(key, r.config) for key in keys)]
    for name in (r.run_id for r in records if r.run_id not in set(taken)):
        print(f"{name} stays: its result does not depend on what select= names")
    return taken


def _decides(key: str, config: Mapping[str, Any]) -> bool:
    """Say whether a run's result can depend on a key: the baseline's does not on bits, nor RTN's on seeds.

    Every record has a value for every key, also for those that its cell never read.
    """
    group, _, rest = key.partition(".")
    if group in _CALIBRATION_KEYS:
        return needs_calibration(config)
    return quantizes(config) or not (
        group in _GRID_KEYS or (group == "quant" and rest not in ("", "name", "round"))
    )


def _restore(runs: Path, name: str) -> int:
    folder = _trash(runs)
    inside = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    kept = [name for name in inside if _THROWN_AWAY.fullmatch(name)]
    matches = [k for k in kept if k == name or k.partition("@")[0] == name]
    if not matches:
        names = [k.partition("@")[0] for k in kept]
        raise UserError(f"'{name}' is not in {folder}.{did_you_mean(name, names)}")
    target = runs / matches[-1].partition("@")[0]
    if os.path.lexists(target):
        raise UserError(f"{target} exists; move it to the trash first.")
    with explain_os_error("bring the run back", target, _REMEDY):
        (folder / matches[-1]).rename(target)
    print(f"{target.name} is back")
    return 0


def _empty(runs: Path) -> int:
    folder = _trash(runs)
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    removed = [path for path in inside if _THROWN_AWAY.fullmatch(path.name)]
    with explain_os_error("empty the trash", folder, _REMEDY):
        for path in removed:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:  # a link to a folder elsewhere, which is not followed
                path.unlink()
    print(f"Deleted {count(len(removed), 'run')} for good.")
    for path in inside:
        if path not in removed:
            print(f"{visible(path.name)} in {folder} was not put there by rm and stays.")
    return 0


def _trash(runs: Path) -> Path:
    """Return the trash, which is a folder of its own.

    Raises:
        UserError: when it is a link: what lies there is not ours to delete.
    """
    folder = runs / _TRASH
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, so nothing is moved or deleted there; remove the link.")
    return folder


def _free(path: Path) -> Path:
    """Return the path, or the first numbered one that is not taken."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
