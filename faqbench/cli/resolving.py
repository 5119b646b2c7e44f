"""Scalars set and references resolved in a plain mapping, for the many cells of a sweep.

OmegaConf takes milliseconds to copy and resolve one configuration, nearly all of it for what a sweep's
cells have in common. What they differ in are scalars; those are replaced here, and references to keys
are looked up. Everything else is left to OmegaConf and to Hydra, their messages included.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import MISSING

from faqbench.config import UserError

_REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")


def with_plain_values(raw: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any] | None:
    """Set scalars, and resolve references to other keys.

    Args:
        raw: an unresolved configuration, left as it is.
        overrides: of its values.

    Returns:
        What Hydra and OmegaConf would give; None where that takes more than replacing scalars by scalars
        and looking keys up.
    """
    config = copy.deepcopy(raw)
    try:
        for override in overrides:
            _set_scalar(config, override)
        return {key: _resolved(value, config) for key, value in config.items()}
    except (_NotPlainError, RecursionError):
        return None


class _NotPlainError(Exception):
    """Something that OmegaConf has to resolve, or to complain about."""


def _set_scalar(config: dict[str, Any], override: Override) -> None:
    if override.type != OverrideType.CHANGE or override.package is not None:
        raise _NotPlainError
    *path, key = str(override.key_or_group).split(".")
    section, value = _look_up(config, path), override.value()
    if not (_is_scalar(_look_up(section, [key])) and _is_scalar(value)):
        raise _NotPlainError
    section[key] = value


def _resolved(value: Any, config: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(inner, config) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, config) for inner in value]
    if not isinstance(value, str) or not ("${" in value or value == MISSING):
        return value
    reference = _REFERENCE.fullmatch(value)
    if reference is None:
        raise _NotPlainError
    target = _look_up(config, reference[1].split("."))
    if not _is_scalar(target):
        raise _NotPlainError
    return _resolved(target, config)


def _look_up(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(found, dict) or key not in found:
            raise _NotPlainError
        found = found[key]
    return found


def _is_scalar(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def refuse_environment(unresolved: object, place: str = "") -> None:
    """Refuse variables of the environment, tokens among them, in what every record and report shows.

    Folders and files may be named by them: which machine has what where is no secret.

    Raises:
        UserError: with the first key that holds one.
    """
    if isinstance(unresolved, dict):
        for key, value in unresolved.items():
            refuse_environment(value, f"{place}.{key}" if place else str(key))
    elif isinstance(unresolved, list):
        for value in unresolved:
            refuse_environment(value, place)
    elif (
        isinstance(unresolved, str)
        and "oc.env:" in unresolved
        and not place.startswith(("hydra.", "paths."))
        and place not in ("model.path", "data.wikitext2_path")
    ):
        raise UserError(
            f"{place} takes a variable of the environment, and its value would stand in every record and "
            "report; type the value; paths, model.path and data.wikitext2_path may take variables."
        )
