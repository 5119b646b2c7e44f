"""Reading W&B's offline runs back with W&B's own reader."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from wandb.util import get_core_path


def logged(runs: Path, name: str = "*") -> list[dict[str, Any]]:
    """Return an offline run's log, a record per line; there must be one run of that name.

    It is what `wandb leet inspect --json` prints, a second for another Python spared.
    """
    (folder,) = (runs / "wandb").glob(f"offline-run-*-{name}")
    (log,) = folder.glob("*.wandb")
    reader = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(log)]
    done = subprocess.run(
        [*reader, str(folder.parent)], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def only(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for update in only(records, "summary"):
        merged |= update["update"]
    return merged


def config_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for config in [run["config"] for run in only(records, "run")] + only(records, "config"):
        merged |= config["update"]
    return {k: v for k, v in merged.items() if k != "_wandb"}


def history_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["item"] for record in only(records, "history")]
