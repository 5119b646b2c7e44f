"""`key=value` arguments of verbs, in the spelling that Hydra's users know, each read as what it means.

A verb lists its keys as the fields of a `Keys`. What cannot be read is one sentence: the key, the value,
what is allowed and, for a choice, the nearest spelling.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from faqbench.config import UserError, did_you_mean


class Keys(BaseModel):
    """The keys that a verb takes, with their values where they are not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")


K = TypeVar("K", bound=Keys)


def between(low: float, high: float, allowed: str) -> PlainValidator:
    """Return what reads a number from low to high; `allowed` says so in words."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise ValueError(allowed)
        return number

    return PlainValidator(read)


def whole(low: int, high: int) -> PlainValidator:
    """Return what reads a whole number from low to high."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return PlainValidator(read)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _patterns(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError("patterns on run ids and key=value filters, quotes in pairs") from error


Flag = Annotated[bool, PlainValidator(_flag)]
Number = Annotated[float, between(0, sys.float_info.max, "a number that is not negative")]
Patterns = Annotated[tuple[str, ...], PlainValidator(_patterns)]


class KeysOfRuns(Keys):
    """The key of every verb that reads runs.

    Attributes:
        runs: the folder of runs.
    """

    runs: Path = Path("runs")

    def check_runs(self) -> None:
        """Refuse a folder of runs that was typed and is not there.

        Raises:
            UserError: for such a folder.
        """
        if "runs" in self.model_fields_set and not self.runs.is_dir():
            raise UserError(f"There is no folder {self.runs}; runs=FOLDER names another.")


class KeysOfSelection(KeysOfRuns):
    """The keys of every verb that is about several runs.

    Attributes:
        select: patterns on run ids and key=value filters, separated by spaces.
    """

    select: Patterns = ()


def read_arguments(
    verb: str, arguments: Sequence[str], keys: type[K], n_words: int | None = 0
) -> tuple[list[str], K]:
    """Split a verb's arguments into plain words and the values of its keys.

    Args:
        verb: named in errors.
        arguments: as typed.
        keys: that are allowed.
        n_words: how many plain words the verb takes at most; None is any number.

    Raises:
        UserError: for an unknown key, a value that is not allowed, or a word too many.
    """
    words, values = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key not in keys.model_fields:
            key_names = ", ".join(keys.model_fields) or "none"
            hint = did_you_mean(key, keys.model_fields)
            raise UserError(f"{verb}: unknown key {key}; allowed: {key_names}.{hint}")
        if equals:
            values[key] = value
        else:
            words.append(argument)
    if n_words is not None and len(words) > n_words:
        raise UserError(f"{verb}: '{words[n_words]}' is not a key=value argument.")
    try:
        return words, keys.model_validate_strings(values)
    except ValidationError as error:
        raise UserError(f"{verb}: {_mistake(error.errors()[0], keys)}") from error


def _mistake(error: ErrorDetails, keys: type[Keys]) -> str:
    """Return what is wrong with the value of one key."""
    key, text = str(error["loc"][0]), str(error["input"])
    if error["type"] == "literal_error":
        choices = get_args(keys.model_fields[key].annotation)
        return f"{key}={text} is not allowed: {', '.join(choices)}.{did_you_mean(text, choices)}"
    return f"{key}={text} is not allowed: {error['ctx']['error']}."
