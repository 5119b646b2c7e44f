"""From command-line arguments to validated experiments, before anything is loaded.

Hydra composes; this module asks it to do so for every cell of a sweep at once, so that a mistake in the
last cell is found before the first one runs, and turns its messages into one sentence each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import faqbench
from faqbench.config import Experiment, UserError, did_you_mean, validate

CONFIG_NAME = "config"
VERSION_BASE = "1.3"


def conf_dir() -> Path:
    """Return the folder of yamls: inside an installed package, or beside it in a source tree."""
    package = Path(faqbench.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command line asks for.

    Attributes:
        experiments: the cells in their order, one for a single run.
        is_sweep: whether Hydra runs it as a multirun.
    """

    experiments: tuple[Experiment, ...]
    is_sweep: bool


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Split Hydra's own flags from the overrides."""
    flags: argparse.Namespace = get_args_parser().parse_args(list(arguments))
    return flags


def only_shows(flags: argparse.Namespace) -> bool:
    """Say whether the flags ask Hydra to show something rather than to run."""
    names = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")
    return any(getattr(flags, name, None) for name in names)


def compose_cells(flags: argparse.Namespace) -> Request:
    """Compose and validate every cell of a command line.

    Raises:
        UserError: all mistakes of all cells, each once.
    """
    overrides = list(flags.overrides)
    if flags.config_dir:
        overrides.append(f"hydra.searchpath=[file://{Path(flags.config_dir).absolute()}]")
    with _composer(), _explained():
        parsed = OverridesParser.create().parse_overrides(overrides)
        first = _compose([_first_choice(o) for o in parsed], with_hydra=True)
        is_sweep = bool(flags.multirun) or _says_multirun(first)
        if not is_sweep:
            # Sweeps without -m are an error that Hydra words well.
            return Request(experiments=(to_experiment(_compose(overrides)),), is_sweep=False)
        params = first.hydra.sweeper.get("params") or {}
        swept = [f"{k}={v}" for k, v in params.items()] + overrides
        cells = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(swept), None)
        return Request(experiments=_validated(cells[0]), is_sweep=True)


def to_experiment(config: DictConfig) -> Experiment:
    """Validate what Hydra composed.

    Raises:
        UserError: for anything that is not allowed.
    """
    raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    return validate({str(k): v for k, v in raw.items()})


def _validated(cells: Sequence[Sequence[str]]) -> tuple[Experiment, ...]:
    experiments, mistakes = [], []
    for cell in cells:
        try:
            experiments.append(to_experiment(_compose(list(cell))))
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n  ".join(dict.fromkeys(mistakes)))
    return tuple(experiments)


@contextmanager
def _composer() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir().absolute()), version_base=VERSION_BASE):
        yield


def _compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    return compose(CONFIG_NAME, overrides=overrides, return_hydra_config=with_hydra)


def _first_choice(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _says_multirun(config: DictConfig) -> bool:
    mode: Any = config.hydra.mode
    return mode is not None and getattr(mode, "name", str(mode)) == "MULTIRUN"


@contextmanager
def _explained() -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into one sentence each."""
    try:
        yield
    except UserError:
        raise
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from error
    except OverrideParseException as error:
        raise UserError(
            f"'{error.override}' is neither a verb (faqbench help lists them) nor an override that Hydra "
            "can read, such as bits=3."
        ) from error
    except ConfigCompositionException as error:
        raise UserError(_bad_override(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra raises a plain ValueError too, as for model=null.
        raise UserError(_one_line(error)) from error


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    known = sorted(o for o in error.options or [] if not o.startswith("_"))
    if not known:
        return _one_line(error)
    return (
        f"{group}={choice} is not known; allowed: {', '.join(known)}.{did_you_mean(choice, known)}"
    )


def _bad_override(error: HydraException) -> str:
    text = str(error)
    key = text.split("'")[1] if text.startswith("Could not override '") else None
    if key is None:
        return _one_line(error)
    section: Any = Experiment
    for part in key.split("."):
        known = list(getattr(section, "model_fields", {}))
        if part not in known:
            return f"Unknown key {key}; keys there: {', '.join(known)}.{did_you_mean(part, known)}"
        section = section.model_fields[part].annotation
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
