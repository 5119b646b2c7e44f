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
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from faqbench.config import Experiment, UserError, did_you_mean

CONFIG_NAME = "config"
_OWN_YAML = "put your settings into FOLDER/experiment/NAME.yaml: --config-dir FOLDER experiment=NAME"
_NOT_FOLLOWED = {
    "config_name": ("--config-name", _OWN_YAML),
    "config_path": ("--config-path", _OWN_YAML),
    "experimental_rerun": ("--experimental-rerun", "rerun=true repeats a cell"),
}
_ONLY_SHOWN = {"package": "--package", "resolve": "--resolve"}
_LIST_OF_CHOICES = re.compile(r"hydra/(?!launcher$|sweeper$)")  # of these Hydra takes several


def flags_parser() -> argparse.ArgumentParser:
    """Return what splits Hydra's own flags from overrides; what they mean is Hydra's to say."""
    parser = argparse.ArgumentParser(add_help=False, description="Hydra")
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
    except (HydraException, OmegaConfBaseException, ValueError) as error:
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


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if inner := options_of(f"{group}/{choice}"):
        ways = ", ".join(f"{group}={choice}/{name}" for name in inner)
        return f"{group}={choice} stands for several choices; take one of {ways}."
    choices = sorted(o for o in error.options or [] if not o.startswith("_"))
    if not choices:
        return _one_line(error)
    return f"{group}={choice} is not known; allowed: {', '.join(choices)}.{did_you_mean(choice, choices)}"


def _bad_override(error: HydraException, overrides: Sequence[str]) -> str:
    text = str(error)
    key = text.split("'")[1] if text.startswith("Could not override '") else None
    if key is None:
        return _one_line(error)
    if key.startswith("hydra."):
        return _unknown_key_of_hydra(key, overrides) or _one_line(error)
    section: Any = Experiment
    for part in key.split("."):
        fields = list(getattr(section, "model_fields", {}))
        if part not in fields:
            return _unknown_key(key, part, fields)
        section = section.model_fields[part].annotation
    return _one_line(error)


def _unknown_key_of_hydra(key: str, overrides: Sequence[str]) -> str | None:
    """Say which keys there are, of the launcher and the sweeper that the command line chooses."""
    choices = [line for line in overrides if options_of(line.lstrip("+").partition("=")[0])]
    config = compose(CONFIG_NAME, overrides=choices, return_hydra_config=True)
    node: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        keys = [str(k) for k in node if k != "_target_"] if isinstance(node, dict) else []
        if part not in keys:
            return _unknown_key(key, part, keys)
        node = node[part]
    return None


def _unknown_key(key: str, part: str, keys: Sequence[str]) -> str:
    return f"Unknown key {key}; keys there: {', '.join(keys) or 'none'}.{did_you_mean(part, keys)}"


def _annotation(key: str) -> Any:
    """Return the type of an experiment's key, or None for an unknown one."""
    annotation: Any = Experiment
    for part in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = None if field is None else field.annotation
    return annotation


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
