"""Reading and writing run folders."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faqbench.config import Experiment, UserError, run_id
from faqbench.files import atomic_directory, explain_os_error
from faqbench.records.run_record import NewerSchemaError, RunRecord

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

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


def read_record(folder: Path) -> RunRecord:
    """Read `record.json` of a run folder.

    Raises:
        ValueError: with the reason, for a damaged record or one of another schema.
    """
    try:
        return RunRecord.from_json(json.loads((folder / "record.json").read_text()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"record.json cannot be read: {error}") from error


def read_run(folder: Path) -> RunData:
    """Read a run folder with its tables; a table that the run did not keep comes back empty."""
    import numpy as np
    import pandas as pd

    def table(name: str) -> pd.DataFrame:
        path = folder / name
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()

    tokens: dict[str, np.ndarray[Any, Any]] = {}
    if (folder / "tokens.npz").is_file():
        with np.load(folder / "tokens.npz", allow_pickle=False) as arrays:
            tokens = {name: arrays[name] for name in arrays.files}
    return RunData(
        record=read_record(folder),
        items=table("items.parquet"),
        tokens=tokens,
        layers=table("layers.parquet"),
    )


def finished_record(experiment: Experiment) -> RunRecord | None:
    """Return the record of this cell when it finished before and is not asked to run again.

    Raises:
        UserError: when a later faqbench wrote the record: running the cell would replace it.
    """
    folder = experiment.paths.runs / run_id(experiment)
    if not (folder / "record.json").is_file():
        return None
    try:
        record = read_record(folder)
    except NewerSchemaError as error:
        raise UserError(
            f"{folder} was written by a newer faqbench ({error}) and is left as it is; install that one, "
            "or set paths.runs to another folder."
        ) from error
    except ValueError:
        return None  # damaged: running again replaces it
    return record if record.status == "finished" and not experiment.rerun else None


def find_runs(runs: Path) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return all records below a folder in the order of their ids, and (name, reason) of damaged ones."""
    records, damaged = [], []
    # Names with a dot are what a killed writer left behind.
    for path in sorted(runs.glob("[!.]*/record.json")):
        try:
            records.append(read_record(path.parent))
        except ValueError as error:
            damaged.append((path.parent.name, str(error)))
    return records, damaged


def without_nan(value: Any) -> Any:
    """Return a JSON value with null in the place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return value
