"""`key=value` arguments of verbs, in the spelling that Hydra's users know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from faqbench.config import UserError, did_you_mean


def read_arguments(
    verb: str, arguments: Sequence[str], keys: Mapping[str, str], n_words: int = 0
) -> tuple[list[str], dict[str, str]]:
    """Split a verb's arguments into plain words and `key=value` pairs.

    Args:
        verb: named in errors.
        arguments: as typed.
        keys: the keys that are allowed, each with its meaning.
        n_words: how many plain words the verb takes at most.

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
    if len(words) > n_words:
        raise UserError(f"{verb}: '{words[n_words]}' is not a key=value argument.")
    return words, values
