"""`key=value` arguments of verbs, in the spelling that Hydra's users know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from faqbench.config import UserError, did_you_mean


def read_arguments(
    verb: str, arguments: Sequence[str], keys: Mapping[str, str], n_words: int | None = 0
) -> tuple[list[str], dict[str, str]]:
    """Split a verb's arguments into plain words and `key=value` pairs.

    Args:
        verb: named in errors.
        arguments: as typed.
        keys: the keys that are allowed, each with its meaning.
        n_words: how many plain words the verb takes at most; None is any number.

    Raises:
        UserError: for an unknown key, or a word too many.
    """
    words, values = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            if key not in keys:
                known = ", ".join(keys) or "none"
                raise UserError(
                    f"{verb}: unknown key {key}; allowed: {known}.{did_you_mean(key, keys)}"
                )
            values[key] = value
        else:
            words.append(argument)
    if n_words is not None and len(words) > n_words:
        raise UserError(f"{verb}: '{words[n_words]}' is not a key=value argument.")
    return words, values


def read_number(verb: str, key: str, text: str) -> float:
    """Return a number that is not negative.

    Raises:
        UserError: for anything else.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UserError(f"{verb}: {key}={text} is not allowed: a number that is not negative.")
    return number


def read_flag(verb: str, key: str, values: Mapping[str, str]) -> bool:
    """Return whether a key is given as true; false when it is not given.

    Raises:
        UserError: for a value that is neither true nor false.
    """
    text = values.get(key, "false")
    if text not in ("true", "false"):
        raise UserError(f"{verb}: {key}={text} is not allowed: true or false.")
    return text == "true"
