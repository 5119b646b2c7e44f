"""A user's .jsonl or .parquet file as a list of texts: the values of one of its columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from faqbench.config import UserError, did_you_mean
from faqbench.corpora.text_file import read_text


def read_table_file(name: str, column: str) -> list[str]:
    """Return the unique texts of a column, in order; rows where it is empty or null are left out.

    Args:
        name: the path of a .jsonl file (UTF-8, one object per line) or a .parquet file.
        column: where the texts are.

    Raises:
        UserError: when the file is missing, empty or damaged, has no such column, or holds something
            else than text there.
    """
    rows = _parquet(name, column) if name.lower().endswith(".parquet") else _jsonl(name, column)
    return plain_texts(rows, f"The file '{name}'", column)


def plain_texts(rows: Iterable[object], what: str, column: str) -> list[str]:
    """Return the unique, non-blank texts among the values of a column.

    Raises:
        UserError: when a value is no text, or none is left.
    """
    texts: dict[str, None] = {}
    for index, value in enumerate(rows):
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(
                f"{what} has a {type(value).__name__} and no text in column '{column}' of row "
                f"{index}; calibration.column names the column with the texts."
            )
        if value.strip():
            texts.setdefault(value)
    if not texts:
        raise UserError(f"{what} has no text in column '{column}'.")
    return list(texts)


def _parquet(name: str, column: str) -> list[object]:
    import pyarrow
    import pyarrow.parquet as pq

    path = Path(name).expanduser()
    try:
        known = pq.read_schema(path).names
        if column not in known:
            raise UserError(_no_column(name, column, known))
        values: list[object] = pq.read_table(path, columns=[column]).column(0).to_pylist()
    except pyarrow.ArrowInvalid as error:
        reason = str(error).split(".", 1)[0]
        raise UserError(f"The file '{name}' is no sound parquet file: {reason}.") from error
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise UserError(f"Could not read the file '{name}': {reason}.") from error
    return values


def _jsonl(name: str, column: str) -> list[object]:
    values: list[object] = []
    known: dict[str, None] = {}
    for number, line in enumerate(read_text(name).split("\n"), start=1):
        if not line.strip():
            continue
        row = _object(name, number, line)
        known.update(dict.fromkeys(row))
        values.append(row.get(column))
    if not values:
        raise UserError(f"The file '{name}' is empty.")
    if column not in known:
        raise UserError(_no_column(name, column, list(known)))
    return values


def _object(name: str, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"Line {number} of '{name}' is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f"Line {number} of '{name}' is JSON, but not an object with columns.")
    return row


def _no_column(name: str, column: str, known: list[str]) -> str:
    return (
        f"The file '{name}' has no column '{column}'; it has {', '.join(known)}. Set "
        f"calibration.column.{did_you_mean(column, known)}"
    )
