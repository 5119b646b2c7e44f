"""Verbs that look after the cache and the folders of runs: cache, fetch, compact, rm."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from faqbench import assets
from faqbench.cli.arguments import Flag, Keys, KeysOfRuns, KeysOfSelection, Number, read_arguments
from faqbench.cli.console import console_progress, print_damaged, print_table
from faqbench.cli.results import find_name, misspelt_sweep
from faqbench.config import UserError, did_you_mean
from faqbench.config.identity import needs_calibration, quantizes
from faqbench.files import explain_os_error
from faqbench.foreign import is_name, visible
from faqbench.formatting import ago, count, n_bytes
from faqbench.records import (
    RunData,
    RunRecord,
    compact_run,
    find_heads,
    find_runs,
    is_packed,
    read_run,
    write_pack,
    write_sweep,
)
from faqbench.report.facts import config_value
from faqbench.report.selection import ReportRequest, select_runs
from faqbench.stages import (
    ENVIRONMENTS,
    PACKAGES,
    StoredEntry,
    find_damaged,
    list_entries,
    oldest_over,
    remove_entry,
    tidy,
)
from faqbench.stages.cache import cache_root
from faqbench.tables import Table

_ACTIONS = ("ls", "verify", "prune")
_N_USERS = 3


class CacheKeys(KeysOfRuns):
    """What to look at, and what `prune` removes.

    Attributes:
        runs: the folder of runs, for who uses what.
        stage: one stage only, such as statistics.
        max_gigabytes: how much may stay.
        days: what was not used for so many days goes.
        unused: what no run was made of goes.
        damaged: what does not match its checksums goes.
        dry: only say what would go.
    """

    stage: str | None = None
    max_gigabytes: Number | None = None
    days: Number | None = None
    unused: Flag = False
    damaged: Flag = False
    dry: Flag = False


def cache(arguments: list[str]) -> int:
    """Look after the cache: cache ls | verify | prune, with stage=… runs=… max_gigabytes=… days=… dry=true.

        cache ls                      size, age and last use of each stage, and how many runs used it
        cache ls stage=statistics     the same for every entry of one stage, with the runs that used it
        cache verify                  read every file against its checksum; exit code 1 when one is damaged
        cache prune                   remove what killed processes left behind
        cache prune max_gigabytes=20  and what was used least recently, until no more than that is left
        cache prune days=30           and what was not used for so long
        cache prune unused=true       and what no run of runs/ was made of
        cache prune damaged=true      and what verify would complain about

    The stage `environments` is what quant=external has installed for other tools; verify reads it against
    pip's checksums. Nothing that a running cell holds is ever removed, nor the packaged model and data.
    dry=true only says what would go. What was removed is computed, or installed, again when it is needed.
    """
    words, keys = read_arguments("cache", arguments, CacheKeys, n_words=1)
    action = words[0] if words else "ls"
    if action not in _ACTIONS:
        actions = ", ".join(_ACTIONS)
        raise UserError(
            f"cache {action} is not known; it is one of {actions}.{did_you_mean(action, _ACTIONS)}"
        )
    root, stage = cache_root(), keys.stage
    everything = list_entries(root)
    entries = [e for e in everything if stage in (None, e.stage)]
    stages = {e.stage for e in everything}
    if stage is not None and not entries and stages:
        raise UserError(f"stage={stage} has no entries; there are {', '.join(sorted(stages))}.")
    if action == "verify":
        return _verify(entries)
    users = _users(keys.runs, entries)
    if action == "prune":
        return _prune(root, entries, users, keys)
    _list(root, entries, users, in_detail=stage is not None)
    return 0


def _list(
    root: Path, entries: Sequence[StoredEntry], users: Mapping[str, Sequence[str]], *, in_detail: bool
) -> None:
    """Print a table of the stages, or in detail of one stage's entries."""
    now = time.time()
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.title if in_detail else entry.stage].append(entry)
    rows = []
    for name, group in groups.items():
        runs = sorted({run for e in group for run in users.get(e.title, ())})
        row = {"entry" if in_detail else "stage": name}
        if not in_detail:
            row["entries"] = str(len(group))
        row |= {
            "size": n_bytes(sum(e.n_bytes for e in group)),
            "made": ago(now - min(e.made for e in group)),
            "last used": ago(now - max(e.used for e in group)),
            "used by": _used_by(runs) if in_detail else count(len(runs), "run") if runs else "",
        }
        rows.append(row)
    print_table(Table.of(rows))
    total = sum(e.n_bytes for e in entries)
    print(f"{count(len(entries), 'entry')}, {n_bytes(total)} in {root}")


def _verify(entries: Sequence[StoredEntry]) -> int:
    damaged = n_checked = 0
    for entry, damage in find_damaged(entries):
        n_checked += 1
        if damage is not None:
            damaged += 1
            print(f"{entry.title}: {damage}")
    print(
        f"{count(n_checked, 'entry')} checked, {damaged} damaged"
        + ("; they are computed again when they are needed." if damaged else ".")
    )
    return int(damaged > 0)


def _prune(
    root: Path, entries: Sequence[StoredEntry], users: Mapping[str, Sequence[str]], keys: CacheKeys
) -> int:
    """Remove what the keys name and nobody holds, or say what would go."""
    stored = [e for e in entries if e.stage != "assets"]
    doomed: dict[str, StoredEntry] = {}
    if keys.days is not None:
        limit = time.time() - 86400 * keys.days
        doomed |= {e.title: e for e in stored if e.used < limit}
    if keys.unused:
        doomed |= {e.title: e for e in stored if e.title not in users}
    if keys.damaged:
        doomed |= {e.title: e for e, damage in find_damaged(stored) if damage is not None}
    if keys.max_gigabytes is not None:
        limit = 1e9 * keys.max_gigabytes
        kept = [e for e in stored if e.title not in doomed]
        doomed |= {e.title: e for e in oldest_over(kept, limit)}
    if keys.dry:
        for entry in doomed.values():
            print(f"{entry.title}  {n_bytes(entry.n_bytes)}")
        freed = sum(e.n_bytes for e in doomed.values())
        print(f"{count(len(doomed), 'entry')} would go, {n_bytes(freed)}.")
        return 0
    gone = [e for e in doomed.values() if remove_entry(e)]
    n_left = tidy(root)
    print(
        f"Removed {count(len(gone), 'entry')}, {n_bytes(sum(e.n_bytes for e in gone))}, and "
        f"{count(n_left, 'leftover')} of processes that were killed."
    )
    if len(gone) < len(doomed):
        print(f"{count(len(doomed) - len(gone), 'entry')} stayed: a running cell holds them.")
    return 0


def _users(runs: Path, entries: Sequence[StoredEntry]) -> dict[str, list[str]]:
    """Return which runs each entry was used by, by the entry's title."""
    users = defaultdict(list)
    environments = {_packages(e): e.title for e in entries if e.stage == ENVIRONMENTS}
    records, damaged = find_runs(runs)
    print_damaged(damaged)
    for record in records:
        for use in record.extra.get("stage_keys", ()):
            if "entry" in use:
                users[use["entry"]].append(record.run_id)
        made = tuple(record.extra.get("checkpoint", {}).get("packages", ()))
        if made in environments:
            users[environments[made]].append(record.run_id)
    return users


def _packages(environment: StoredEntry) -> tuple[str, ...]:
    listed = environment.path / PACKAGES
    return tuple(listed.read_text().split()) if listed.is_file() else ()


def _used_by(runs: Sequence[str]) -> str:
    shown = ", ".join(runs[:_N_USERS])
    return f"{shown} and {len(runs) - _N_USERS} more" if len(runs) > _N_USERS else shown


class FetchKeys(Keys):
    """Whether the terms of use that an asset comes under are accepted."""

    accept_terms: Flag = False


def fetch(arguments: list[str]) -> int:
    """Bring packaged models and data into the cache: fetch [NAME ...] accept_terms=true.

    Without a name, everything that needs no acceptance of terms of use.
    """
    names, keys = read_arguments("fetch", arguments, FetchKeys, n_words=None)
    for name, path in assets.fetch(console_progress(), names, accept_terms=keys.accept_terms):
        print(f"{name}  {path}")
    if not names:
        for name in assets.asset_names(with_terms=True):
            print(f"{name}  not fetched without its name: faqbench fetch {name} accept_terms=true")
    return 0


class CompactKeys(KeysOfSelection):
    """Which runs go where.

    Attributes:
        into: the folder that the compact runs are written to.
        name: the sweep to copy, all runs otherwise.
    """

    into: Path | None = None
    name: str | None = None


def compact(arguments: list[str]) -> int:
    """Copy finished runs into a folder small enough to commit: compact into=runs/study name=… select=….

    Window means stand in for tokens, so every table, plot and paired comparison of a report can be made
    from the copy; `faqbench report name=study` finds runs/study by itself.
    """
    _, keys = read_arguments("compact", arguments, CompactKeys)
    if keys.into is None:
        raise UserError("compact needs into=FOLDER, such as into=runs/study.")
    runs, into, name = keys.runs, keys.into, keys.name
    keys.check_runs()
    if name is not None and (said := misspelt_sweep(runs, name)):
        raise UserError(said)
    if into.resolve() == runs.resolve():
        raise UserError(f"into={into} is the folder of runs itself; whole runs are not replaced.")
    if name is not None and not is_name(name):
        raise UserError(f"name '{name}' cannot name a sweep; use letters, digits and . _ + - only.")
    selection = select_runs(
        ReportRequest(runs=runs, reports=Path("reports"), name=name or "all", select=keys.select)
    )
    print_damaged(selection.damaged)
    if not selection.finished:
        raise UserError(f"There is no finished run to copy in {runs}.")
    copies = _read(runs, selection.finished)
    if not copies:
        raise UserError(f"No finished run in {runs} can be read whole.")
    write_pack(into, copies.values())
    if name is not None:
        write_sweep(into, name, list(copies))
    _say_where_models_lie(selection.finished)
    size = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    n_runs = len(find_heads(into)[0])
    a_run = f"{n_bytes(size / n_runs)} a run"
    print(f"{len(copies)} runs copied; {into} holds {count(n_runs, 'run')}: {n_bytes(size)} ({a_run})")
    return 0


def _read(runs: Path, records: Sequence[RunRecord]) -> dict[str, RunData]:
    """Return compact runs by their ids; one with a damaged table is named and left out."""
    copies = {}
    for record in records:
        try:
            copies[record.run_id] = compact_run(read_run(runs / record.run_id))
        except ValueError as error:
            print_damaged([(record.run_id, str(error))])
    return copies


def _say_where_models_lie(records: Sequence[RunRecord]) -> None:
    """Name the folders of this machine that the copies hold as they were typed."""
    folders = {config_value(r.config, "model.path") for r in records}
    for path in sorted(p for p in folders if p is not None):
        print(
            f"note: model.path={path} stands in the copies as it was typed; others will see it and cannot "
            "load the model from there.",
            file=sys.stderr,
        )


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


def rm(arguments: list[str]) -> int:
    """Move runs out of sight, not out of the world: rm RUN … | rm select=…; rm restore=RUN brings one back.

    A run goes to runs/.trash and is in no table, report or sweep any more; asking for its cell runs it
    again, from what is cached. empty=true deletes what lies in the trash for good.
    """
    words, keys = read_arguments("rm", arguments, RemoveKeys, n_words=None)
    runs, is_selective = keys.runs, "select" in keys.model_fields_set
    if keys.empty:
        return _empty(runs)
    if keys.restore is not None:
        return _restore(runs, keys.restore)
    names = [find_name(runs, word) for word in words]
    if is_selective and not keys.select:
        raise UserError("rm select= says nothing of the runs to remove; say which, as in select=quant=rtn.")
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
