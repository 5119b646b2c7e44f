"""From command-line arguments to validated experiments, before anything is loaded.

Hydra composes; this module asks it to do so for every cell of a sweep at once, so that a mistake in the
last cell is found before the first one runs, and turns its messages into one sentence each. Composing
takes Hydra a tenth of a second even where no file is read twice, so what it made of a choice of groups is
kept, and a cell's values are set in a copy.
"""

from __future__ import annotations

import argparse
import copy
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from faqbench.cli.refusals import (
    CONFIG_NAME,
    check_choices,
    check_flags,
    check_is_single,
    choices_of_glob,
    explained,
    first_choice,
    is_group,
    read_flags,
    search_path_override,
)
from faqbench.config import Experiment, UserError, validate
from faqbench.config.experiment import CheckpointSection
from faqbench.config.section import conf_dir

VERSION_BASE = "1.3"
T = TypeVar("T")
AUTO = "auto"
# What is meant by keys beside `model.parent`.
_MEANT = {"model.parent": "model"} | {
    f"model.{key}": f"quant.checkpoint.{key}" for key in ("path", "hub_id", "revision")
}
# Hydra looks for plug-ins below the folders of the path, in a launcher's processes too.
sys.path.append(str(Path(__file__).parent / "plugins"))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a command line.

    Attributes:
        experiment: validated.
        overrides: from which Hydra composes it again, in whatever process a launcher chooses, with the
            dtype that `auto` means where the command line was typed: the cell is named by that one.
    """

    experiment: Experiment
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a command line asks for.

    Attributes:
        cells: in their order, one for a single run.
        kind: `cell`, `sweep` over cells that are known beforehand, or `search` by a sweeper that
            chooses each cell by what the ones before it gave; then `cells` has its first guess alone.
        hydra: Hydra's own configuration: the launcher, the sweeper, where things are written.
    """

    cells: tuple[Cell, ...]
    kind: Literal["cell", "sweep", "search"]
    hydra: DictConfig

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The cells' experiments."""
        return tuple(cell.experiment for cell in self.cells)

    @property
    def is_sweep(self) -> bool:
        """Whether Hydra runs it as a multirun."""
        return self.kind != "cell"


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Split Hydra's own flags from the overrides.

    Raises:
        UserError: for a flag that is none, or that would not be followed.
    """
    flags = read_flags(arguments)
    check_flags(flags)
    return flags


def only_shows(flags: argparse.Namespace) -> bool:
    """Say whether the flags ask Hydra to show something rather than to run."""
    names = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")
    return any(getattr(flags, name, None) for name in names)


def compose_cells(flags: argparse.Namespace) -> Command:
    """Compose and validate every cell of a command line.

    Raises:
        UserError: all mistakes of all cells, each once.
    """
    overrides = all_overrides(flags)
    with _named_as_typed(flags.overrides), composer(), explained(overrides):
        parsed = _parse(overrides)
        guess = [first_choice(o) for o in parsed]
        check_choices(_parse(guess))
        compose_quickly = QuickComposer()
        first = compose_quickly.whole(guess)
        if not flags.multirun and not _says_multirun(first):
            check_is_single(parsed)
            cell = make_cell(compose_quickly(guess), overrides)
            return Command(cells=(cell,), kind="cell", hydra=first.hydra)
        if flags.run:
            raise UserError("--run asks for a single cell, but the experiment is a sweep.")
        _check_one_experiment(parsed)
        sweeper = first.hydra.sweeper
        if is_search(first.hydra):
            _compose([str(o.input_line) for o in parsed if not o.is_sweep_override()])  # as Hydra will
            cell = make_cell(compose_quickly(guess), guess)
            return Command(cells=(cell,), kind="search", hydra=first.hydra)
        swept = [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()] + overrides
        cells = _validated(_split(_parse(swept)), compose_quickly)
        return Command(cells=cells, kind="sweep", hydra=first.hydra)


def first_choices(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a sweep with the first choice of each, those of its first cell."""
    return [first_choice(o) for o in _parse(overrides)]


def is_search(hydra_config: Any) -> bool:
    """Say whether a sweeper chooses the cells by what earlier ones gave, as all but ours are free to."""
    return str(hydra_config.sweeper["_target_"]) != "hydra_plugins.faqbench_sweeper.CellSweeper"


def _split(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the cells of a sweep: every choice of each override with every one of the others.

    Raises:
        UserError: for a sweep over an interval, which takes a sweeper that searches.
    """
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = str(override.get_key_element())
        if not override.is_sweep_override():
            values = [str(override.get_value_element_as_str())]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            kind = override.value_type.name if override.value_type else ""
            raise UserError(f"BasicSweeper does not support sweep type : {kind}")
        choices[key] = [f"{key}={value}" for value in values]
    return [list(cell) for cell in product(*choices.values())]


def all_overrides(flags: argparse.Namespace) -> list[str]:
    """Return a command line's overrides, the user's own folder of yamls among them."""
    overrides = _as_parent(flags.overrides)
    if flags.config_dir:
        overrides.append(search_path_override(flags.config_dir))
    return overrides


def _as_parent(overrides: Sequence[str]) -> list[str]:
    """Return overrides in which the model is the parent of the checkpoint that they call the model.

    `model.path=FOLDER model.parent=NAME` reads as people think of it; all else of a cell, the fingerprint
    of its weights above all, is about the parent.
    """
    if not any(line.startswith("model.parent=") for line in overrides):
        return list(overrides)
    parts = [line.partition("=") for line in overrides]
    return [f"{_MEANT.get(key, key)}{equals}{value}" for key, equals, value in parts]


@contextmanager
def _named_as_typed(overrides: Sequence[str]) -> Iterator[None]:
    """Name keys in a mistake as they were typed, where `_as_parent` gave them other names."""
    try:
        yield
    except UserError as error:
        keys = {line.partition("=")[0] for line in overrides}
        if "model.parent" not in keys:
            raise
        text = str(error)
        for typed, meant in _MEANT.items():
            end = "(?==)" if typed == "model.parent" else r"(?!\w)"
            if meant not in keys:
                text = re.sub(rf"(?<![\w./]){re.escape(meant)}{end}", typed, text)
        raise UserError(text) from error


def to_experiment(config: DictConfig) -> Experiment:
    """Validate what Hydra composed.

    Raises:
        UserError: for anything that is not allowed.
    """
    return validate(_resolved(_plain(config)))


def make_cell(raw: dict[str, Any], overrides: Sequence[str]) -> Cell:
    """Return the cell that a plain, resolved mapping describes, `dtype=auto` in it replaced.

    Raises:
        UserError: for anything that is not allowed.
    """
    experiment = validate(_resolved(raw))
    fixed = [f"dtype={experiment.dtype}"] if raw.get("dtype") == AUTO else []
    return Cell(experiment=experiment, overrides=(*overrides, *fixed))


def _resolved(raw: dict[str, Any]) -> dict[str, Any]:
    """Put what is only known on this machine into a configuration: the dtype, a checkpoint's own grid."""
    return _with_stated_grid(_with_dtype(raw))


def _with_stated_grid(raw: dict[str, Any]) -> dict[str, Any]:
    """Put bits, group size and symmetry of a quantized checkpoint where those of a method stand.

    Raises:
        UserError: for what is no checkpoint of a format that is read here.
    """
    quant = raw.get("quant")
    if not isinstance(quant, dict) or quant.get("round") != "checkpoint":
        return raw
    section = CheckpointSection.model_validate(quant["checkpoint"])
    if (section.path is None) == (section.hub_id is None):
        return raw  # which validation refuses
    from faqbench.models import bring_packed, stated_of  # torch, which not every verb needs

    stated = stated_of(bring_packed(section, whole=False))
    grid = {k: getattr(stated, k) for k in ("bits", "group_size", "symmetric")}
    own = quant["name"] if quant["name"] != "checkpoint" else f"checkpoint-{stated.method.lower()}"
    return raw | grid | {"quant": quant | grid | {"name": own}}


def _with_dtype(raw: dict[str, Any]) -> dict[str, Any]:
    """Put what `dtype=auto` means on the device in its place."""
    device = raw.get("device")
    if raw.get("dtype") != AUTO:
        return raw
    if not isinstance(device, str):  # which validation refuses; one mistake is not two
        return raw | {"dtype": "float32"}
    from faqbench.hardware import fast_dtype, named_device  # torch, which not every verb needs

    return raw | {"dtype": fast_dtype(named_device(device)).dtype}


def _plain(config: DictConfig) -> dict[str, Any]:
    _refuse_environment(OmegaConf.to_container(config, resolve=False))
    return _resolved_plain(config)


def _resolved_plain(config: DictConfig) -> dict[str, Any]:
    raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(raw, dict)
    return {str(k): v for k, v in raw.items() if k != "hydra"}


def _refuse_environment(unresolved: object, place: str = "") -> None:
    """Refuse variables of the environment, tokens among them, in what every record and report shows.

    Folders and files may be named by them: which machine has what where is no secret.

    Raises:
        UserError: with the first key that holds one.
    """
    if isinstance(unresolved, dict):
        for key, value in unresolved.items():
            _refuse_environment(value, f"{place}.{key}" if place else str(key))
    elif isinstance(unresolved, list):
        for value in unresolved:
            _refuse_environment(value, place)
    elif (
        isinstance(unresolved, str)
        and "oc.env:" in unresolved
        and not place.startswith(("hydra.", "paths."))
        and place not in ("model.path", "quant.checkpoint.path", "data.wikitext2_path")
    ):
        raise UserError(
            f"{place} takes a variable of the environment, and its value would stand in every record and "
            "report; type the value; paths, model.path and data.wikitext2_path may take variables."
        )


def _validated(cells: Sequence[Sequence[str]], compose_quickly: QuickComposer) -> tuple[Cell, ...]:
    composed, mistakes = [], []
    for overrides in cells:
        try:
            composed.append(make_cell(compose_quickly(overrides), overrides))
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n  ".join(dict.fromkeys(mistakes)))
    return tuple(composed)


class QuickComposer:
    """Composes many cells inside `composer()`, each choice of groups once in a process.

    What Hydra made of a choice is kept as long as the yamls stay as they are; those of a user's own folders
    may change, so what is made of these is kept by one composer alone.
    """

    def __init__(self) -> None:
        self._parsed: dict[str, Override] = {}
        self._of_ours, self._of_others = _kept.setdefault(_state_of_yamls(), _Kept()), _Kept()

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose one cell, without Hydra's own configuration, and resolve it."""
        quick = self._quickly(overrides, _Composition.plain)
        return _plain(_compose(list(overrides))) if quick is None else quick

    def whole(self, overrides: Sequence[str]) -> DictConfig:
        """Compose one cell with Hydra's own configuration."""
        quick = self._quickly(overrides, _Composition.whole)
        return _compose(list(overrides), with_hydra=True) if quick is None else quick

    def _quickly(
        self, overrides: Sequence[str], ask: Callable[[_Composition, Sequence[Override]], T]
    ) -> T | None:
        """Ask what is kept of the choices of groups; None leaves all to Hydra, which words mistakes."""
        composition, values = self._composition(overrides)
        if composition is None:
            return None
        try:
            return ask(composition, values)
        except OmegaConfBaseException:
            return None

    def _composition(self, overrides: Sequence[str]) -> tuple[_Composition | None, list[Override]]:
        """Compose the choices of groups, and what is Hydra's own, apart from the values of keys.

        None stands for overrides that do more than to change values.
        """
        unknown = [line for line in overrides if line not in self._parsed]
        parsed = _parse(unknown)
        check_choices(parsed)
        self._parsed |= dict(zip(unknown, parsed, strict=True))
        lines = [self._parsed[line] for line in overrides]
        of_hydra = [str(o.input_line) for o in lines if o.is_hydra_override()]
        kept = self._of_others if any("hydra.searchpath" in line for line in of_hydra) else self._of_ours
        values = [o for o in lines if not (o.is_hydra_override() or kept.has_group(o, of_hydra))]
        if any(o.type != OverrideType.CHANGE or o.package is not None for o in values):
            return None, values
        choices = tuple(str(o.input_line) for o in lines if o not in values)
        if choices not in kept.compositions:
            kept.compositions[choices] = _Composition(_compose(list(choices), with_hydra=True))
        return kept.compositions[choices], values


class _Kept:
    """What was composed from yamls that stayed as they are."""

    def __init__(self) -> None:
        self.compositions: dict[tuple[str, ...], _Composition] = {}
        self._are_groups: dict[tuple[str, ...], bool] = {}

    def has_group(self, override: Override, of_hydra: Sequence[str]) -> bool:
        """Say whether there are files to choose from; Hydra's own overrides may add folders of them."""
        asked = (str(override.key_or_group), *of_hydra)
        if asked not in self._are_groups:
            self._are_groups[asked] = is_group(asked[0], of_hydra)
        return self._are_groups[asked]


_kept: dict[tuple[object, ...], _Kept] = {}


def _state_of_yamls() -> tuple[object, ...]:
    files = [(path, path.stat()) for path in sorted(conf_dir().rglob("*.yaml"))]
    return tuple((path, status.st_mtime_ns, status.st_size) for path, status in files)


class _Composition:
    """What Hydra made of a choice of groups, and the same with values in it.

    OmegaConf takes 10 ms to set a cell's values and resolve the rest, seconds in a sweep. So the rest is
    resolved once, and values are set in what came out, and wherever nothing but `${key}` of them stands.
    """

    def __init__(self, whole: DictConfig) -> None:
        own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        raw = OmegaConf.to_container(own, resolve=False)
        _refuse_environment(raw)
        self._leaves = dict(_leaves(raw))
        linked = {path: _LINK.fullmatch(str(value)) for path, value in self._leaves.items()}
        links = {path: tuple(match[1].split(".")) for path, match in linked.items() if match}
        self._links = {path: target for path, target in links.items() if target in self._leaves}
        others = "\n".join(str(v) for path, v in self._leaves.items() if path not in self._links)
        self._is_obscure = "${" in _LINK.sub("", others)
        self._used = [tuple(name.split(".")) for name in _LINK.findall(others)]
        for name in self._used:  # which grows: what is used by a link is used
            self._used += [self._links[path] for path in self._links if path[: len(name)] == name]
        # What is Hydra's own may hold classes of plug-ins, which not every process can unpickle.
        self._whole, self._own = whole, pickle.dumps(own)
        self._resolved: bytes | None = None

    def whole(self, values: Sequence[Override]) -> DictConfig:
        """Return it with values, and with Hydra's own configuration."""
        return _with_values(copy.deepcopy(self._whole), values)

    def plain(self, values: Sequence[Override]) -> dict[str, Any]:
        """Return it with values, resolved."""
        if not all(map(self._is_free, values)):
            return _resolved_plain(_with_values(self._unpickled(), values))
        if self._resolved is None:
            self._resolved = pickle.dumps(_resolved_plain(self._unpickled()))
        plain: dict[str, Any] = pickle.loads(self._resolved)  # noqa: S301
        own = {_path(o): o.value() for o in values}
        for path in {**own, **self._links}:
            end = path
            while end in self._links and end not in own:
                end = self._links[end]
            if end in own:
                reduce(dict.__getitem__, path[:-1], plain)[path[-1]] = own[end]
        return plain

    def _unpickled(self) -> DictConfig:
        config: DictConfig = pickle.loads(self._own)  # noqa: S301 - of this process; quicker than a deepcopy
        return config

    def _is_free(self, override: Override) -> bool:
        """Say whether a value takes the place of another that nothing but links refers to."""
        path = _path(override)
        return (
            not self._is_obscure
            and self._leaves.get(path, "???") != "???"
            and _is_plain(override.value())
            and not any(path[: len(used)] == used for used in self._used)
        )


_LINK = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_Path = tuple[str, ...]


def _path(override: Override) -> _Path:
    return tuple(str(override.key_or_group).split("."))


def _leaves(raw: object, path: _Path = ()) -> Iterator[tuple[_Path, object]]:
    """Yield what stands in a mapping of mappings, a list as it is."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, raw


def _with_values(config: DictConfig, values: Sequence[Override]) -> DictConfig:
    """Set values as Hydra does."""
    for override in values:
        key, value = str(override.key_or_group), override.value()
        _refuse_environment(value, key)
        OmegaConf.update(config, key, value, merge=True)
    return config


def _is_plain(value: object) -> bool:
    """Say whether OmegaConf would give a value back as it is."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    is_text = isinstance(value, str) and not any(sign in value for sign in ("$", "\\", "???"))
    return is_text or value is None or isinstance(value, bool | int | float)


@contextmanager
def composer() -> Iterator[None]:
    """Make Hydra ready to compose from `conf/`."""
    GlobalHydra.instance().clear()
    with (
        warnings.catch_warnings(),
        _parsing_once(),
        initialize_config_dir(str(conf_dir().absolute()), version_base=VERSION_BASE),
    ):
        _accept_launchers_of_ours()
        yield


@contextmanager
def _parsing_once() -> Iterator[None]:
    """Let Hydra parse a yaml once, as long as the file stays as it is.

    It parses all of them for each cell, 40 % of a composition, and offers no place for what it read.
    """
    parse = OmegaConf.load

    def parse_once(file: IO[Any]) -> Any:
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if key not in _parsed:
            _parsed[key] = pickle.dumps(parse(file))
        return pickle.loads(_parsed[key])  # noqa: S301 - of this process; quicker than a deepcopy

    OmegaConf.load = parse_once  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OmegaConf.load = parse  # type: ignore[method-assign]


_parsed: dict[tuple[int, ...], bytes] = {}


def _accept_launchers_of_ours() -> None:
    """Silence Hydra 1.3's warning that our yamls in `hydra/launcher` complete its plugins' own.

    They are meant to: `hydra/launcher=joblib` is what a user types, and the plugin's fields check ours.
    """
    warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against")


_accept_launchers_of_ours()  # workers compose before any other code of ours runs in them


def _parse(lines: Sequence[str]) -> list[Override]:
    """Read overrides; a pattern of choices is the list of those that it matches."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(list(lines))
    return [
        parser.parse_override(choices_of_glob(o)) if o.value_type == ValueType.GLOB_CHOICE_SWEEP else o
        for o in parsed
    ]


def _compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    return compose(CONFIG_NAME, overrides=overrides, return_hydra_config=with_hydra)


def _check_one_experiment(overrides: Sequence[Override]) -> None:
    """Refuse a sweep over experiments that are sweeps: all would be swept as the first one says.

    Raises:
        UserError: with the experiments, of which one can run at a time.
    """
    for override in overrides:
        if override.key_or_group != "experiment" or not override.is_sweep_override():
            continue
        lines = [f"experiment={name}" for name in override.sweep_string_iterator()]
        if any(_compose([line], with_hydra=True).hydra.sweeper.get("params") for line in lines):
            raise UserError(f"{override.input_line} names several sweeps; run {', then '.join(lines)}.")


def _says_multirun(config: DictConfig) -> bool:
    mode: Any = config.hydra.mode
    return mode is not None and getattr(mode, "name", str(mode)) == "MULTIRUN"
