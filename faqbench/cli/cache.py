"""Look after the cache: cache ls | verify | prune, with stage=… runs=… max_gigabytes=… days=… dry=true.

    cache ls                      size, age and last use of each stage, and how many runs were made of it
    cache ls stage=statistics     the same for every entry of one stage, with the runs that used it
    cache verify                  read every file against its checksum; exit code 1 when one is damaged
    cache prune                   remove what killed processes left behind
    cache prune max_gigabytes=20  and what was used least recently, until no more than that is left
    cache prune days=30           and what was not used for so long
    cache prune unused=true       and what no run of runs/ was made of
    cache prune damaged=true      and what verify would complain about

The stage `environments` is what quant=external has installed for other tools; verify reads it against pip's
checksums. Nothing that a running cell holds is ever removed, nor the packaged model and data. dry=true only
says what would go. What was removed is computed, or installed, again when it is needed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from faqbench.cli.arguments import Flag, KeysOfRuns, Number, read_arguments
from faqbench.cli.console import print_damaged, print_table
from faqbench.config import UserError, did_you_mean
from faqbench.formatting import ago, count, n_bytes
from faqbench.records import find_runs
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


def run(arguments: list[str]) -> int:
    """List, check or prune the cache."""
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
