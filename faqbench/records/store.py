"""Reading and writing run folders; what of a run is its result, and what only says how the run went.

Equal configurations, seeds and machines give equal results, bit for bit, whatever was cached, whichever
launcher ran them and however often they were interrupted. Times, memory, cache hits, the environment
and where things were written may differ; and so may gates that compare a run with others of its folder,
which see those that have finished before it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faqbench.config import Experiment, UserError, run_id
from faqbench.config.identity import deciding_config
from faqbench.files import atomic_directory, explain_os_error
from faqbench.foreign import is_name, read_json, visible
from faqbench.records.packed import PACK, RunPack, is_packed, pack_of, read_table, read_tokens
from faqbench.records.run_record import NewerSchemaError, RunRecord

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


RECORD = "record.json"
_MOST_MEGABYTES = 32
_REMEDY = "free some space, or set paths.runs to a folder that can be written"


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A record with its tables.

    Attributes:
        items: columns `task` str, `item` int (document index), `metric` str, `value` float.
        tokens: protocol -> float16 or float32 negative log-likelihoods [n_windows, seq_len - 1], nats.
        layers: one row per quantized linear: `block`, `role`, `linear`, `relative_error`, ...
    """

    record: RunRecord
    items: pd.DataFrame
    tokens: Mapping[str, np.ndarray[Any, Any]]
    layers: pd.DataFrame


def write_run(runs: Path, data: RunData, config_yaml: str) -> Path:
    """Write a run's folder atomically, replacing an earlier one, and return it.

    Raises:
        UserError: when the folder cannot be written.
    """
    import numpy as np

    target = runs / data.record.run_id
    with explain_os_error("write the record", target, _REMEDY):
        _make_room(target)
    with explain_os_error("write the record", target, _REMEDY), atomic_directory(target) as folder:
        (folder / "config.yaml").write_text(config_yaml)
        text = json.dumps(without_nan(data.record.to_json()), indent=1, allow_nan=False)
        (folder / "record.json").write_text(text)
        data.items.to_parquet(folder / "items.parquet", index=False)
        data.layers.to_parquet(folder / "layers.parquet", index=False)
        arrays = io.BytesIO()
        np.savez_compressed(arrays, allow_pickle=False, **dict(data.tokens))
        (folder / "tokens.npz").write_bytes(arrays.getvalue())
    return target


def _make_room(target: Path) -> None:
    """Move a folder of this name that holds another run's record out of the way, its content whole."""
    try:
        told = read_written(target).run_id
    except ValueError:
        return  # nothing, or a damaged record, which running again replaces
    if told == target.name:
        return
    n_moved = 1
    while os.path.lexists(aside := target.with_name(f"{told}-moved-{n_moved}")):
        n_moved += 1
    target.rename(aside)


def read_record(folder: Path) -> RunRecord:
    """Read `record.json` of a run folder. The run is called as its folder is, whatever the record says.

    Raises:
        ValueError: with the reason, for a damaged record or one of another schema.
    """
    return _called(read_written(folder), folder.name)


def read_written(folder: Path) -> RunRecord:
    """Read a record as it was written; its `run_id` differs where the folder was renamed or copied."""
    if not is_name(folder.name):
        raise ValueError("its folder's name is no run's: letters, digits and . _ + - only")
    pack = _pack_with(folder)
    raw = pack.record(folder.name) if pack else read_json(folder / RECORD, _MOST_MEGABYTES)
    record = RunRecord.from_json(raw)
    if not is_name(record.run_id):
        raise ValueError(f"malformed record: run_id {record.run_id!r:.80} is no run's name")
    return record


def _called(record: RunRecord, name: str) -> RunRecord:
    """Return a record under its folder's name, with a word about it where the two differ."""
    if record.run_id == name:
        return record
    note = f"This run's folder was renamed or copied: its record is that of {record.run_id}."
    return dataclasses.replace(record, run_id=name, warnings=(note, *record.warnings))


def read_run(folder: Path) -> RunData:
    """Read a run folder with its tables; a table that the run did not keep comes back empty.

    Raises:
        ValueError: with the reason, for a damaged record or table.
    """
    return RunData(
        record=read_record(folder),
        items=read_items(folder),
        tokens=read_scores(folder),
        layers=read_layers(folder),
    )


def read_items(folder: Path) -> pd.DataFrame:
    """Read the scores of a run's task items alone, as `RunData.items` has them.

    Raises:
        ValueError: with the reason, for a damaged table.
    """
    if pack := _pack_with(folder):
        return pack.table("items", folder.name)
    return read_table(folder / "items.parquet", ("task", "item", "metric", "value"))


def read_layers(folder: Path) -> pd.DataFrame:
    """Read a run's quantized linears alone, as `RunData.layers` has them.

    Raises:
        ValueError: with the reason, for a damaged table.
    """
    if pack := _pack_with(folder):
        return pack.table("layers", folder.name)
    return read_table(folder / "layers.parquet")


def read_scores(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read a run's scores per token alone, as `RunData.tokens` has them.

    Raises:
        ValueError: with the reason, for a damaged file.
    """
    if pack := _pack_with(folder):
        return pack.tokens(folder.name)
    return read_tokens(folder / "tokens.npz")


def _pack_with(folder: Path) -> RunPack | None:
    """Return the pack that holds a run; None for a run with a folder of its own, or none at all."""
    return None if os.path.lexists(folder) or not is_packed(folder) else pack_of(folder.parent)


def finished_record(experiment: Experiment) -> RunRecord | None:
    """Return the record of this cell when it finished before and is not asked to run again.

    Raises:
        UserError: when a later faqbench wrote the record: running the cell would replace it.
    """
    folder = experiment.paths.runs / run_id(experiment)
    if not (folder / RECORD).is_file() and not is_packed(folder):
        return None
    try:
        record = read_written(folder)
    except NewerSchemaError as error:
        raise UserError(
            f"{folder} was written by a newer faqbench ({error}) and is left as it is; install that one, "
            "or set paths.runs to another folder."
        ) from error
    except ValueError:
        return None  # damaged: running again replaces it
    is_done = record.status == "finished" and record.run_id == folder.name
    return record if is_done and not experiment.rerun else None


def find_runs(runs: Path) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return all records below a folder in the order of their ids, and (name, reason) of the others.

    A copy beside its original is one of the others, so that no run counts twice.
    """
    return find_with(runs, lambda name: read_written(runs / name))


def find_with(
    runs: Path, read: Callable[[str], RunRecord]
) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Find runs as `find_runs` does, with a reader of the record in a folder of a name."""
    records: list[RunRecord] = []
    damaged: list[tuple[str, str]] = []
    held = _held(runs)
    names = set(held)
    for name in held:
        try:
            record = read(name)
            if record.run_id != name and record.run_id in names:
                raise ValueError(f"it is a copy of {record.run_id}, which is here too")
            records.append(_called(record, name))
        except ValueError as error:
            damaged.append((visible(name), str(error)))
    return records, damaged


def run_folders(runs: Path) -> list[Path]:
    """Return the folders that hold a record, readable or not, in the order of their names.

    A packed run is among them, as the folder that it would have. Names with a dot or an underscore in front
    are ours: scratch folders, the trash, packs, sweeps, progress.
    """
    return [runs / name for name in _held(runs)]


def _held(runs: Path) -> list[str]:
    """Return the names of those folders: of thousands they are quicker made than paths."""
    with explain_os_error("list the runs", runs, "name another folder, or ask for rights to this one"):
        names = sorted(p.name for p in runs.iterdir()) if runs.is_dir() else []
    held = [n for n in names if n[0] not in "._" and _has_record(f"{runs}/{n}")]
    if PACK in names and (pack := pack_of(runs)) is not None:
        held = sorted({*held, *(n for n in pack.records if n not in names)})
    return held


def _has_record(folder: str) -> bool:
    try:
        os.lstat(f"{folder}/{RECORD}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # there is one, or nobody can tell: the reader will say why not
    return True


def without_nan(value: Any) -> Any:
    """Return a JSON value with null in the place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return value


# Keys of the record and of its `extra` that are no result; the last, at any depth.
_COURSE = ("environment", "stages", "peak_memory_bytes", "started", "seconds")
_BOOKKEEPING = ("plan", "stage_keys", "sources")
_GATES_OF_THE_FOLDER = ("same_tokens", "not_worse_than_rtn", "not_worse_than_fewer_bits")
_MEASURED = frozenset({"seconds", "cached", "peak_memory_bytes", "tokens_per_second"})


def result_of(record: RunRecord) -> dict[str, Any]:
    """Return the part of a record that its configuration and seed decide, as a JSON mapping."""
    full = record.to_json()
    result = {key: value for key, value in full.items() if key not in _COURSE}
    result["config"] = deciding_config(full["config"])
    result["gates"] = [g for g in full["gates"] if g["name"] not in _GATES_OF_THE_FOLDER]
    extra = {k: v for k, v in full["extra"].items() if k not in _BOOKKEEPING}
    result["extra"] = _without_measures(extra)
    return result


def truncated_requests(record: RunRecord) -> dict[str, tuple[int, int]]:
    """Return (cut, all) requests of each task with some that are longer than the model's context.

    They lost their beginning, so their answers are to other questions than the task's.
    """
    by_task = {}
    for task, facts in record.extra.get("evaluation", {}).items():
        config = facts.get("config") if isinstance(facts, Mapping) else None
        keys = ("n_truncated", "n_requests")
        n, total = (config.get(k) if isinstance(config, Mapping) else None for k in keys)
        if isinstance(n, int) and isinstance(total, int) and 0 < n <= total:
            by_task[task] = (n, total)
    return by_task


def same_model(a: RunRecord, b: RunRecord) -> bool:
    """Say whether two runs began with the same model, whatever it was called.

    That is weights, configuration and attention; a record from before the last two were recorded is
    known by its weights alone.
    """
    key = "model" if "model" in a.fingerprints and "model" in b.fingerprints else "weights"
    return key in a.fingerprints and a.fingerprints[key] == b.fingerprints.get(key)


def differences(first: RunData, second: RunData) -> list[str]:
    """Name what differs in the results of two runs, tables included; nothing when they are equal.

    Returns:
        Names such as `metrics`, `config.bits`, `layers.alpha` or `tokens.wikitext2-512`.
    """
    import numpy as np

    one, other = result_of(first.record), result_of(second.record)
    keys = []
    for key in one:
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            parts = dict.fromkeys([*one[key], *other[key]])
            keys += [f"{key}.{k}" for k in parts if _differ(one[key].get(k), other[key].get(k))]
        elif _differ(one[key], other[key]):
            keys.append(key)
    for name in ("items", "layers"):
        a: pd.DataFrame = getattr(first, name).drop(columns="seconds", errors="ignore")
        b: pd.DataFrame = getattr(second, name).drop(columns="seconds", errors="ignore")
        columns = dict.fromkeys([*a.columns, *b.columns])
        keys += [f"{name}.{c}" for c in columns if c not in a or c not in b or not a[c].equals(b[c])]
    for name in dict.fromkeys([*first.tokens, *second.tokens]):
        x, y = first.tokens.get(name), second.tokens.get(name)
        if x is None or y is None or not np.array_equal(x, y, equal_nan=True):
            keys.append(f"tokens.{name}")
    return keys


def _without_measures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_measures(v) for k, v in value.items() if k not in _MEASURED}
    if isinstance(value, list | tuple):
        return [_without_measures(v) for v in value]
    return value


def _differ(one: Any, other: Any) -> bool:
    """Compare JSON values; a list and a tuple of the same are equal, and so are two NaN."""
    return repr(_without_measures(one)) != repr(_without_measures(other))
