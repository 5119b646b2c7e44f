"""What a run was made from: facts of files and of the hub, since a name is not its content.

A configuration names folders, files and branches; all of them can be written to. A record therefore keeps,
under `extra.sources`, what its names stood for:

    files      name -> [bytes, modified, changed, sha256]; the times in nanoseconds
    commit     of a hub's model or data set
    asset      the hashes and the recipe of a packaged model, or of the packaged texts and tasks

A finished run is reused only while all of it is still so. Files are compared by size and times first; only
where those differ are they read and compared by their hashes, so a copied folder is the same folder.
This module imports no torch: a sweep whose cells are all there ends at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from faqbench.assets import packaged_data_key, packaged_model_key
from faqbench.config import Experiment
from faqbench.config.calibration import is_table
from faqbench.config.experiment import ModelSection
from faqbench.corpora.hub_set import hub_set, hub_set_names, section_hub_set
from faqbench.corpora.user_file import is_text_file
from faqbench.hub import resolve_commit
from faqbench.records import RunRecord, finished_record
from faqbench.stages import SMALL_BYTES, hash_file

Facts = dict[str, Any]
_OF_A_MODEL = (".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja", ".py")


def sources_of(
    experiment: Experiment, section: ModelSection, hash_of: Callable[[Path], str]
) -> dict[str, Facts]:
    """Return what everything that a cell names stands for now; what is not there is left out.

    Args:
        experiment: the cell.
        section: its model, with the commit of a hub's.
        hash_of: gives the sha256 of a file.
    """
    facts_by_place: dict[str, Facts] = {}
    for name, kind, value in _named(experiment):
        match kind:
            case "folder":
                facts_by_place[name] = {"files": _facts(_files_of(Path(value)), hash_of)}
            case "file":
                facts_by_place[name] = {"files": _facts([Path(value)], hash_of)}
            case "model" if section.revision is not None:
                facts_by_place[name] = {"commit": section.revision}
            case "data set" | "checkpoint":
                commit = _commit(experiment, name, kind, value)
                facts_by_place[name] = {"commit": commit} if commit is not None else {}
            case "asset":
                facts_by_place[name] = {"asset": packaged_model_key(value)}
    return {"packaged data": {"asset": packaged_data_key()}} | facts_by_place


def large_files(experiment: Experiment) -> dict[Path, Facts]:
    """Return the files that a cell names and that take long to hash, each with what decides its hash."""
    named = [(kind, Path(v).expanduser()) for _, kind, v in _named(experiment)]
    paths = [p for kind, path in named if kind == "folder" for p in _files_of(path)]
    paths += [path for kind, path in named if kind == "file"]
    return {
        path: {"path": str(path.resolve()), "stat": _stat(path)}
        for path in paths
        if path.is_file() and path.stat().st_size > SMALL_BYTES
    }


def reusable_record(experiment: Experiment) -> tuple[RunRecord | None, str]:
    """Return the finished record of a cell while it is still the answer, or why the one there is is not.

    Raises:
        UserError: as `finished_record` does.
    """
    record = finished_record(experiment)
    why = None if record is None else why_not_reusable(record, experiment)
    return (record, "") if why is None else (None, why)


def why_not_reusable(record: RunRecord, experiment: Experiment) -> str | None:
    """Say what a finished run was made from that is no longer there, or return None when all of it is."""
    recorded = record.extra.get("sources")
    if recorded is None:
        named = [name for name, kind, _ in _named(experiment) if kind != "asset"]
        # Packaged names stand for one content; a record from before this was kept is believed there.
        return f"its record does not tell what {' and '.join(named)} held" if named else None
    for name, kind, value in _named(experiment):
        facts = recorded.get(name, {})
        match kind:
            case "folder" | "file":
                path = Path(value)
                paths = _files_of(path) if kind == "folder" else [path]
                if (why := _changed(facts.get("files", {}), paths)) is not None:
                    return f"{name}: {why}"
            case "model" | "data set" | "checkpoint":
                now = _commit(experiment, name, kind, value)
                if now is not None and now != facts.get("commit", now):
                    return f"{name} is at commit {now[:10]} now, not {facts['commit'][:10]}"
            case "asset":
                if not _same_json(facts.get("asset"), packaged_model_key(value)):
                    return f"{name} is made by another recipe now"
    if not _same_json(recorded.get("packaged data", {}).get("asset"), packaged_data_key()):
        return "the packaged texts and tasks are others now"
    return None


def _named(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    """Yield (key and value, kind, value) of everything outside the configuration that a cell names."""
    model = experiment.model
    if model.source == "packaged":
        yield f"model.asset={model.asset}", "asset", str(model.asset)
    elif model.source == "hub":
        yield f"model.hub_id={model.hub_id}", "model", str(model.hub_id)
    elif model.source == "path":
        yield f"model.path={model.path}", "folder", str(model.path)
    checkpoint = experiment.quant.checkpoint
    if experiment.method.owns("checkpoint") and checkpoint.path is not None:
        kind = "folder" if Path(checkpoint.path).expanduser().is_dir() else "file"
        yield f"quant.checkpoint.path={checkpoint.path}", kind, checkpoint.path
    elif experiment.method.owns("checkpoint"):
        yield f"quant.checkpoint.hub_id={checkpoint.hub_id}", "checkpoint", str(checkpoint.hub_id)
    if model.tokenizer is not None and Path(model.tokenizer).expanduser().is_dir():
        yield f"model.tokenizer={model.tokenizer}", "folder", model.tokenizer
    if experiment.needs_calibration:
        for domain in experiment.calibration_mixture:
            if is_text_file(domain) or is_table(domain):
                yield f"calibration.domain={domain}", "file", domain
            elif (path := _hub_path(experiment, domain)) is not None:
                yield f"calibration.domain={domain}", "data set", path
    wikitext2 = experiment.data.wikitext2_path
    if wikitext2 is not None and any(p.startswith("wikitext2") for p in experiment.evaluation.protocols):
        yield f"data.wikitext2_path={wikitext2}", "file", str(wikitext2)


def _hub_path(experiment: Experiment, domain: str) -> str | None:
    if domain in hub_set_names():
        return hub_set(domain).path
    is_hub = domain.startswith("hub:")
    return section_hub_set(domain, experiment.calibration).path if is_hub else None


def _commit(experiment: Experiment, name: str, kind: str, value: str) -> str | None:
    """Return the commit that a name of the hub stands for now."""
    if kind == "data set":
        return resolve_commit(value, _revision(experiment, name), "dataset")
    section = experiment.model if kind == "model" else experiment.quant.checkpoint
    return resolve_commit(value, section.revision)


def _revision(experiment: Experiment, name: str) -> str | None:
    domain = name.partition("=")[2]
    known_set = hub_set(domain) if domain in hub_set_names() else None
    return experiment.calibration.hub.revision if known_set is None else known_set.revision


def _files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that a model or a tokenizer may be read from."""
    there = folder.expanduser()
    paths = there.iterdir() if there.is_dir() else ()
    return sorted(p for p in paths if p.suffix in _OF_A_MODEL and p.is_file())


def _facts(paths: Iterable[Path], hash_of: Callable[[Path], str]) -> Facts:
    there = [path.expanduser() for path in paths]
    return {p.name: [*_stat(p), hash_of(p)] for p in there if p.is_file()}


def _changed(recorded: Mapping[str, list[Any]], paths: Iterable[Path]) -> str | None:
    there = {path.name: path.expanduser() for path in paths if path.expanduser().is_file()}
    for name in sorted(recorded.keys() | there.keys()):
        if name not in there:
            return f"{name} is gone"
        if name not in recorded:
            return f"{name} was not there"
        *stat, sha256 = recorded[name]
        if _stat(there[name]) != stat and hash_file(there[name]) != sha256:
            return f"{name} is another file than the run was made from"
    return None


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    # The change time cannot be set back, as the modification time can.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _same_json(recorded: object, now: object) -> bool:
    """Compare a value of a record with one that is not JSON yet."""
    return bool(recorded == json.loads(json.dumps(now)))
