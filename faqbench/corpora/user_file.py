"""A user's file as a list of texts: the paragraphs of a .txt, or a column of a .jsonl or .parquet file.

Only regular files are read: a pipe or a device may never end. Of these no more than a bound is read, so
that a file which is larger than anyone would calibrate on costs neither the memory nor the time of all of
it. What was left out is said (`Texts.is_cut`). A parquet file is read some rows at a time, as many as its
own metadata promises to be small: a file of some hundred bytes can hold gigabytes of text.
"""

from __future__ import annotations

import codecs
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faqbench import formatting
from faqbench.config import UserError, did_you_mean
from faqbench.stages import Progress

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a file or a data set.

    Attributes:
        texts: unique, in their order.
        is_cut: whether there was more than the bound on how much is read.
    """

    texts: tuple[str, ...]
    is_cut: bool = False


def is_text_file(domain: str) -> bool:
    """Whether a domain is written as the path of a .txt file, whether or not the file is there."""
    return Path(domain).suffix.lower() == ".txt"


def read_text_file(name: str, most: int) -> Texts:
    """Return the unique paragraphs of a UTF-8 file, in order.

    Args:
        name: the path of the file.
        most: bytes that are read of it, to the end of a line where there is one.

    Raises:
        UserError: when the file is missing, is no regular file, cannot be read, is empty, or is not UTF-8
            text.
    """
    text, is_cut = read_text(name, most)
    texts = [t for t in re.split(r"\n(?:[ \t]*\n)+", text) if t.strip()]
    if is_cut and len(texts) > 1:
        del texts[-1]  # it goes on after the bound
    if not texts:
        raise UserError(f"The text file '{name}' is empty.")
    return Texts(texts=tuple(dict.fromkeys(texts)), is_cut=is_cut)


def read_text(name: str, most: int) -> tuple[str, bool]:
    r"""Return a UTF-8 file's text, with "\n" as its line ends, and whether it goes on after that.

    Raises:
        UserError: when the file is missing, is no regular file, cannot be read, or is not UTF-8 text.
    """
    path = regular_file(name)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(_unreadable(name, error)) from error
    is_cut = len(content) > most
    if is_cut:
        content = content[: content.rfind(b"\n") + 1 or most]
    try:
        # Of a text that goes on, the last character may be there in part.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=not is_cut)
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{name}' is not UTF-8 text (byte {error.start}).") from error
    if "\0" in text:
        raise UserError(f"The file '{name}' is not text: it holds zero bytes.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), is_cut


def regular_file(name: str) -> Path:
    """Return the path of a user's file, which ends when it is read.

    Raises:
        UserError: when it is missing, or a folder, a pipe, a socket or a device.
    """
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(name, error)) from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise UserError(f"'{name}' is {kind}, not a regular file; copy its content into one.")
    return path


def _unreadable(name: str, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or "it cannot be read"
    return f"Could not read the file '{name}': {reason.lower()}."


_MOST_ROWS, _FEWEST_ROWS = 1024, 8  # of a parquet file, read at once
_LARGEST_CHUNK = 4  # times the bound: what a column of one row group may unpack to


def read_table_file(name: str, column: str, most: int, progress: Progress) -> Texts:
    """Return the unique texts of a column, in order; rows where it is empty or null are left out.

    Args:
        name: the path of a .jsonl file (UTF-8, one object per line) or a .parquet file.
        column: where the texts are.
        most: bytes of a .jsonl file, or characters of the column, that are read.
        progress: told of the rows of a parquet file.

    Raises:
        UserError: when the file is missing, empty or damaged, has no such column, or holds something
            else than text there.
    """
    if name.lower().endswith(".parquet"):
        rows = _parquet(name, column, most, progress)
        return plain_texts(rows, f"The file '{name}'", column, most)
    values, is_cut = _jsonl(name, column, most)
    texts = plain_texts(values, f"The file '{name}'", column, most)
    return Texts(texts=texts.texts, is_cut=is_cut)


def plain_texts(rows: Iterable[object], what: str, column: str, most: int) -> Texts:
    """Return the unique, non-blank texts among the values of a column.

    Args:
        rows: the values, which are read until their texts have more than `most` characters together.
        what: has the column, as a sentence begins.
        column: its name.
        most: characters.

    Raises:
        UserError: when a value is no text, or none is left.
    """
    texts: dict[str, None] = {}
    n_characters, is_cut = 0, False
    for index, value in enumerate(rows):
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(
                f"{what} has a {type(value).__name__} and no text in column '{column}' of row "
                f"{index}; calibration.column names the column with the texts."
            )
        n_characters += len(value)
        if n_characters > most:
            is_cut = True
            break
        _check_unicode(value, f"{what} has text in column '{column}' of row {index}")
        if value.strip():
            texts.setdefault(value)
    if not texts:
        reason = f" within its first {most} characters" if is_cut else ""
        raise UserError(f"{what} has no text in column '{column}'{reason}.")
    return Texts(texts=tuple(texts), is_cut=is_cut)


def _check_unicode(text: str, where: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} that is not Unicode: half of a surrogate pair (U+{ord(text[error.start]):04X}) at "
            f"character {error.start}; write the whole character, or leave it out."
        ) from error


def _parquet(name: str, column: str, most: int, progress: Progress) -> Iterator[object]:
    """Yield the values of a column of a Parquet file, a bounded number of rows at once."""
    import pyarrow
    import pyarrow.parquet as pq

    path = regular_file(name)
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if column not in columns:
                raise UserError(_no_column(name, column, columns))
            if columns.count(column) > 1:
                raise UserError(f"The file '{name}' has {columns.count(column)} columns '{column}'.")
            n_rows = _rows_at_once(name, file.metadata, column, most)
            with progress.activity(f"read {path.name}", file.metadata.num_rows) as advance:
                for batch in file.iter_batches(batch_size=n_rows, columns=[column]):
                    yield from batch.column(0).to_pylist()
                    advance(len(batch))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error).split(".", 1)[0]
        raise UserError(f"The file '{name}' is no sound parquet file: {reason}.") from error
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise UserError(f"Could not read the file '{name}': {reason}.") from error


def _rows_at_once(name: str, metadata: Any, column: str, most: int) -> int:
    """Return how many rows to unpack at once, so that they are small beside the bound.

    Raises:
        UserError: for a column that unpacks to much more than the bound within one group of rows.
    """
    sizes = [
        chunk.total_uncompressed_size
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.split(".")[0] == column or chunk.path_in_schema == column
    ]
    largest: int = max([1, *sizes])
    if largest > _LARGEST_CHUNK * most:
        raise UserError(
            f"The file '{name}' unpacks to {formatting.n_bytes(largest)} in one group of rows; write it "
            f"with smaller groups, or raise calibration.max_characters={most}."
        )
    return min(_MOST_ROWS, max(_FEWEST_ROWS, most // largest))


def _jsonl(name: str, column: str, most: int) -> tuple[list[object], bool]:
    values: list[object] = []
    columns: dict[str, None] = {}
    text, is_cut = read_text(name, most)
    if is_cut and "\n" not in text:
        raise UserError(
            f"Line 1 of '{name}' is longer than calibration.max_characters={most}: a .jsonl file has an "
            "object per line."
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _object(name, number, line)
        columns.update(dict.fromkeys(row))
        values.append(row.get(column))
    if not values:
        raise UserError(f"The file '{name}' is empty.")
    if column not in columns:
        raise UserError(_no_column(name, column, list(columns)))
    return values, is_cut


def _object(name: str, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"Line {number} of '{name}' is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f"Line {number} of '{name}' is JSON, but not an object with columns.")
    return row


def _no_column(name: str, column: str, columns: list[str]) -> str:
    return (
        f"The file '{name}' has no column '{column}'; it has {', '.join(columns)}. Set "
        f"calibration.column.{did_you_mean(column, columns)}"
    )
