"""What Hydra takes and drops, or words badly: one sentence for each, before anything runs.

Hydra accepts flags that only its own `main` follows, lists where one choice is meant (it merges the
choices), and values that its grammar cannot read unless they are quoted. Whatever would not be done is
refused here, with what to type instead.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from faqbench.config import Experiment, UserError, did_you_mean

CONFIG_NAME = "config"
_OWN_YAML = "put your settings into FOLDER/experiment/NAME.yaml: --config-dir FOLDER experiment=NAME"
_NOT_FOLLOWED = {
    "config_name": ("--config-name", _OWN_YAML),
    "config_path": ("--config-path", _OWN_YAML),
    "experimental_rerun": ("--experimental-rerun", "rerun=true repeats a cell"),
}
_USUAL_FLAGS = "-m, --cfg job, --config-dir FOLDER, --help, -q and -v"
_ONLY_SHOWN = {"package": "--package", "resolve": "--resolve"}
_OPEN = ("model.random.", "quant.external.options.")  # to keys that no yaml of ours lists
_LIST_OF_CHOICES = re.compile(r"hydra/(?!launcher$|sweeper$)")  # of these Hydra takes several


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Split Hydra's own flags from overrides.

    Raises:
        UserError: for a flag that is none of Hydra's, or whose value is none of its choices.
    """
    parser = _flags_parser()
    try:
        flags, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(_bad_flag(parser, error)) from error
    for word in others:
        if word.startswith("-"):
            names = [name for action in parser._actions for name in action.option_strings]
            hint = did_you_mean(word.partition("=")[0], [n for n in names if n.startswith("--")])
            raise UserError(f"{word} is not a flag; usual ones are {_USUAL_FLAGS}.{hint}")
    if others:
        raise UserError(f"{others[0]} stands apart from other overrides; write flags before or after all.")
    return flags


def _bad_flag(parser: argparse.ArgumentParser, error: argparse.ArgumentError) -> str:
    """Say which choices a flag has, or what argparse says where it has none."""
    action = next((a for a in parser._actions if "/".join(a.option_strings) == error.argument_name), None)
    given = error.message.split("'")[1] if error.message.startswith("invalid choice: '") else None
    if action is None or given is None:
        return f"{error.argument_name}: {error.message}."
    choices = list(action.choices or ())
    flag = next(name for name in action.option_strings if name.startswith("--"))
    return f"{flag} {given} is not allowed: {', '.join(choices)}.{did_you_mean(given, choices)}"


def _flags_parser() -> argparse.ArgumentParser:
    """Return what splits Hydra's own flags from overrides; what they mean is Hydra's to say."""
    parser = argparse.ArgumentParser(add_help=False, description="Hydra", exit_on_error=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--version", action="version", version=f"Hydra {hydra.__version__}")
    for names in (
        ("--help", "-h"), ("--hydra-help",), ("--resolve",), ("--run", "-r"), ("--multirun", "-m"),
        ("--shell-completion", "-sc"),
    ):  # fmt: skip
        parser.add_argument(*names, action="store_true")
    for names in (
        ("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn"),
        ("--config-dir", "-cd"), ("--experimental-rerun",),
    ):  # fmt: skip
        parser.add_argument(*names)
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    shown = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=shown)
    return parser


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse flags of Hydra's that would not be followed.

    Raises:
        UserError: with what to type instead.
    """
    for name, (flag, remedy) in _NOT_FOLLOWED.items():
        if getattr(flags, name):
            raise UserError(f"{flag} is not supported; {remedy}.")
    for name, flag in _ONLY_SHOWN.items():
        if getattr(flags, name) and not flags.cfg:
            raise UserError(f"{flag} says how a configuration is shown; it needs --cfg job.")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UserError(f"--config-dir {flags.config_dir} is not a folder.")


def search_path_override(config_dir: str) -> str:
    """Return the override that adds a user's folder of yamls, whatever its name is made of."""
    text = f"file://{Path(config_dir).absolute()}"
    return f"hydra.searchpath=[{QuotedString(text=text, quote=Quote.double).with_quotes()}]"


def check_choices(overrides: Sequence[Override]) -> None:
    """Refuse a list of choices where Hydra would merge them into one.

    Raises:
        UserError: with the sweep that was meant.
    """
    for override in overrides:
        group = str(override.key_or_group)
        value = override.value()
        if isinstance(value, list) and is_group(group) and not _LIST_OF_CHOICES.match(group):
            choices = ",".join(map(str, value))
            raise UserError(
                f"{group}=[{choices}] would merge several choices into one; give one, or run a cell for "
                f"each with -m {group}={choices}."
            )


def check_is_single(overrides: Sequence[Override]) -> None:
    """Refuse several values for a key of a single cell.

    Raises:
        UserError: with the ways to write what may have been meant.
    """
    for override in overrides:
        if not override.is_sweep_override():
            continue
        key, line = str(override.get_key_element()), str(override.input_line)
        text = line.partition("=")[2]
        ways = [f"-m {line} runs a cell for each"]
        annotation = str(_annotation(key))
        if "tuple[" in annotation:
            ways.append(f"{key}=[{text}] is one list")
        elif "str" in annotation or "Path" in annotation:
            ways.append(f"{_quoted(key, text)} is one text")
        raise UserError(f"{line} gives several values to a single cell: {', '.join(ways)}.")


def choices_of_glob(override: Override) -> str:
    """Return a sweep over a pattern of choices as one over their names, `_parts` of others left out.

    Raises:
        UserError: when no choice has such a name.
    """
    group = str(override.key_or_group)
    choices = [name for name in override.sweep_string_iterator() if not name.startswith("_")]
    if not choices:
        raise UserError(
            f"{override.input_line} matches none of {', '.join(options_of(group)) or 'no choices'}."
        )
    return f"{override.get_key_element()}={','.join(choices)}"


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into one sentence each.

    Args:
        overrides: of the command line, whose choices decide which keys there are.
    """
    try:
        yield
    except UserError:
        raise
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from error
    except OverrideParseException as error:
        raise UserError(_unreadable(str(error.override))) from error
    except ConfigCompositionException as error:
        raise UserError(_bad_override(error, overrides)) from error
    except OmegaConfBaseException as error:
        raise UserError(_bad_reference(error, overrides)) from error
    except (HydraException, ValueError) as error:
        # Hydra raises a plain ValueError too, as for model=null.
        raise UserError(_one_line(error)) from error


def options_of(group: str, overrides: Sequence[str] = ()) -> list[str]:
    """Return the choices of a group, of folders that overrides of Hydra's own add, too; none for a key."""
    loader = GlobalHydra.instance().config_loader()
    options = loader.get_group_options(group, config_name=CONFIG_NAME, overrides=list(overrides))
    return [name for name in options if not name.startswith("_")]


def is_group(name: str, overrides: Sequence[str] = ()) -> bool:
    """Say whether a name is that of a group rather than of a key, as any with a dot is."""
    return "." not in name and bool(options_of(name, overrides))


def _unreadable(line: str) -> str:
    key, equals, value = line.partition("=")
    if equals and re.fullmatch(r"[+~]{0,2}[\w./@-]+", key) and value.strip("[]{}() ") == value:
        return (
            f"'{line}' cannot be read as it stands; quote the value: {_quoted(key, value)} (the outer "
            "quotes are the shell's)."
        )
    return (
        f"'{line}' is neither a verb (faqbench help lists them) nor an override that Hydra can read, "
        "such as bits=3."
    )


def _quoted(key: str, value: str) -> str:
    quoted = QuotedString(text=value, quote=Quote.double).with_quotes()
    return shlex.quote(f"{key}={quoted}")


_SWEEPERS = {  # that search, each by its own plugin of Hydra, and what installs it
    "optuna": "'faqbench[search]'",
    "ax": "hydra-ax-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
}


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if group == "hydra/sweeper" and choice in _SWEEPERS:  # Hydra knows those alone that are installed
        return f"{group}={choice} is not installed; pip install {_SWEEPERS[choice]}."
    if inner := options_of(f"{group}/{choice}"):
        ways = ", ".join(f"{group}={choice}/{name}" for name in inner)
        return f"{group}={choice} stands for several choices; take one of {ways}."
    choices = sorted(o for o in error.options or [] if not o.startswith("_"))
    if not choices:
        return _one_line(error)
    return f"{group}={choice} is not known; allowed: {', '.join(choices)}.{did_you_mean(choice, choices)}"


def _bad_override(error: HydraException, overrides: Sequence[str]) -> str:
    text = str(error)
    if text.startswith("Error merging override "):
        line = text.splitlines()[0].removeprefix("Error merging override ").strip("'")
        return f"{line} is not allowed: {_first_line(error.__cause__ or error)}."
    key = text.split("'")[1] if text.startswith("Could not override '") else None
    return (key and _unknown_key(key, overrides)) or _one_line(error)


def _unknown_key(key: str, overrides: Sequence[str]) -> str | None:
    """Say which keys there are, in the groups that the command line chooses; None where it is one."""
    node: Any = _of_choices(overrides)
    if not key.startswith("hydra."):
        del node["hydra"]
    for part in key.split("."):
        keys = [str(k) for k in node if k != "_target_"] if isinstance(node, dict) else []
        if part not in keys:
            more = f"; +{key}=VALUE adds one" if key.startswith(_OPEN) else ""
            hint = did_you_mean(part, keys)
            return f"Unknown key {key}; keys there: {', '.join(keys) or 'none'}{more}.{hint}"
        node = node[part]
    return None


def _of_choices(overrides: Sequence[str]) -> Any:
    """Compose what the first cell of a command line chooses, Hydra's own part included."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    lines = [first_choice(o) for o in parser.parse_overrides(list(overrides))]
    path = [line for line in lines if line.startswith("hydra.searchpath=")]
    choices = [line for line in lines if options_of(line.lstrip("+").partition("=")[0], path)]
    config = compose(CONFIG_NAME, overrides=[*choices, *path], return_hydra_config=True)
    return OmegaConf.to_container(config, resolve=False)


def first_choice(override: Override) -> str:
    """Return an override with the first of its choices alone, where it has several."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_interval_sweep():  # a searching sweeper's
        interval: Any = override.value()
        return f"{override.get_key_element()}={interval.start}"
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _bad_reference(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """Say which key refers to what there is not, and which override took that away."""
    reason, key = _first_line(error), error.full_key
    if not isinstance(error, InterpolationKeyError) or not key:
        return f"{key} cannot be had: {reason}." if key else _one_line(error)
    name = reason.split("'")[1]
    for line in overrides:
        if line.startswith("~") and f"{name}.".startswith(f"{line[1:].partition('=')[0]}."):
            return f"{line} takes away {name}, which {key} refers to; set it to another value instead."
    names = [".".join(path) for path in _paths(_of_choices(overrides)) if path[0] != "hydra"]
    return f"{key} refers to ${{{name}}}, and there is no such key.{did_you_mean(name, names)}"


def _paths(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all keys of a mapping of mappings."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*path, str(key))
        yield from _paths(value, (*path, str(key)))


def _annotation(key: str) -> Any:
    """Return the type of an experiment's key, or None for an unknown one."""
    annotation: Any = Experiment
    for part in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = None if field is None else field.annotation
    return annotation


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
