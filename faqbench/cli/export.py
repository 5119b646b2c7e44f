"""Verbs of checkpoints for other tools: export, verify."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faqbench import formatting
from faqbench.cli.arguments import Flag, Keys, KeysOfRuns, Number, read_arguments
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.cli.console import console_progress, print_table
from faqbench.cli.results import find_record
from faqbench.config import Experiment, UserError, did_you_mean, run_id, validate
from faqbench.config.identity import identity_of
from faqbench.hub import check_push, push_folder
from faqbench.records import RunRecord, read_scores
from faqbench.sources import why_not_reusable
from faqbench.stages import StageCache, cache_root, find_damage
from faqbench.stages.manifest import MANIFEST
from faqbench.tables import Table


class ExportKeys(KeysOfRuns):
    """What is made of a run.

    Attributes:
        format: compressed-tensors, gptq, gptq_v2, awq or gguf.
        into: the folder to make.
        push: a repository of the Hugging Face hub to upload it to; a new one is private.
        requantize: quantize again where the cache has lost the codes, and see that they are the same.
        shard_gigabytes: of one file of weights at most.
    """

    format: str = ""
    into: Path | None = None
    push: str | None = None
    requantize: Flag = False
    shard_gigabytes: Number = 2.0


def export(arguments: list[str]) -> int:
    """Write a run as a checkpoint that other tools load: export RUN format=compressed-tensors into=FOLDER.

    Codes, scales and zero points are those that were measured; channel scales are folded into norms and
    rows. `faqbench verify FOLDER` proves the result. What is stopped goes on with the same command; with
    push=REPO the folder is uploaded to the Hugging Face hub, another day too.
    """
    from faqbench.export.writing import FORMATS, ExportRequest, export_run

    words, keys = read_arguments("export", arguments, ExportKeys, n_words=1)
    if not words or keys.into is None:
        raise UserError(
            "export needs a run and a folder: export RUN format=compressed-tensors into=FOLDER."
        )
    name = keys.format
    if name not in FORMATS:
        raise UserError(
            f"export: format={name} is not allowed: {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
        )
    runs, into = keys.runs, keys.into.expanduser()
    record = find_record(runs, words[0])
    push = keys.push
    if push is not None:
        check_push(push)
    if push is None or not _is_export_of(into, record, name):
        experiment = _experiment(record)
        request = ExportRequest(
            record=record,
            experiment=experiment,
            scores=read_scores(runs / record.run_id),
            codes=_codes(record, experiment, keys.requantize),
            format=name,
            into=into,
            shard_bytes=int(keys.shard_gigabytes * 1e9),
        )
        done = export_run(request, console_progress())
        print(
            f"{into}: {formatting.n_bytes(done.n_bytes)}, {done.bits_per_weight:.3f} bits per weight, "
            f"{done.bits_per_parameter:.3f} per parameter with embeddings"
        )
        print(f"Verify it: {shlex.join(['python', '-m', 'faqbench', 'verify', str(into)])}")
    if push is not None:
        print(f"Uploaded: {push_folder(into, push, f'{record.run_id} as {name}, by faqbench')}")
    return 0


def _is_export_of(into: Path, record: RunRecord, name: str) -> bool:
    """Say whether a folder is this very export, whole, which an upload goes on with."""
    key = {"run_id": record.run_id, "format": name}
    return (into / MANIFEST).is_file() and find_damage(into, key) is None


def _experiment(record: RunRecord) -> Experiment:
    """Return the cell that a record is of, when it can be exported.

    Raises:
        UserError: for a run that failed or quantized nothing, whose configuration or sources are not what
            they were.
    """
    if record.status != "finished":
        raise UserError(f"{record.run_id} failed, so there is nothing to export: {record.error_line}.")
    defaults = compose_cells(parse_flags([])).experiments[0].model_dump(mode="json")
    experiment = validate(_over(defaults, record.config))
    if not experiment.quantizes:
        raise UserError(f"{record.run_id} is full precision: there are no codes to export.")
    if experiment.is_foreign:
        maker = record.extra.get("checkpoint", {}).get("made_by", "another tool")
        raise UserError(
            f"{record.run_id} is a checkpoint by {maker} already and not packed anew: use its own files."
        )
    for key, value, idle in (
        ("quant.activations.bits", experiment.method.activations, "null"),
        ("quant.rotate", experiment.method["rotate"], "none"),
    ):
        if not value.is_idle:
            raise UserError(
                f"{record.run_id} has {key} set, which no format here holds: a plain loader would leave it "
                f"out; export a run with {key}={idle}."
            )
    if not experiment.method["rotate"].is_idle:
        raise UserError(
            f"{record.run_id} quantizes a rotated model, which is not exported; export a run with "
            "quant.rotate=none."
        )
    if identity_of(experiment.model_dump(mode="json")) != record.identity:
        raise UserError(
            f"The configuration of {record.run_id} means another cell to this faqbench "
            f"({run_id(experiment)}); run that one, and export it."
        )
    if (why := why_not_reusable(record, experiment)) is not None:
        raise UserError(f"{record.run_id} cannot be exported: {why}; run the cell again.")
    return experiment


def _over(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's configuration, with the neutral values of keys that are newer than it."""
    result = dict(defaults)
    for key, value in config.items():
        inner = defaults.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping) and key != "mixture":
            result[key] = _over(inner, value)
        else:
            result[key] = value
    return result


def _codes(record: RunRecord, experiment: Experiment, is_made_again: bool) -> Path:
    """Return the folder of a run's quantized linears.

    Raises:
        UserError: when the cache no longer holds it as it was written, and quantizing again is not asked
            for or gives other codes.
    """
    used = [str(use["entry"]) for use in record.extra.get("stage_keys", [])]
    entry = next((entry for entry in used if entry.startswith("quantized/")), None)
    folder = cache_root() / "stages" / (entry or "quantized")
    damage = "its record names none" if entry is None else find_damage(folder)
    if damage is None:
        return folder
    start = f"The codes of {record.run_id} are not in the cache ({damage})"
    if not is_made_again:
        raise UserError(
            f"{start}; requantize=true makes them again and checks that they are the same, or set "
            "FAQBENCH_CACHE to the cache that has them."
        )
    expected = record.extra.get("codes_sha256")
    if expected is None:
        raise UserError(
            f"{start}, and its record is too old to say whether codes that are made again are the same; "
            "run the cell with rerun=true, and export that."
        )
    from faqbench.pipeline import quantize_again
    from faqbench.quantization import fingerprint_codes

    with StageCache(owner=record.run_id) as cache:
        made = quantize_again(experiment, cache=cache, progress=console_progress())
    if fingerprint_codes(made) != expected:
        raise UserError(
            f"{start}, and quantizing again gave others: the numbers of its record are not theirs; run the "
            "cell with rerun=true, and export that."
        )
    return made


def verify(arguments: list[str]) -> int:
    """Verify an exported checkpoint against the run that it came from: verify FOLDER.

    A process without faqbench's modelling code loads the folder with transformers and compares every
    linear, the logits of fixed prompts, the perplexity of the run's protocols and the size of the files
    with what was measured. The run itself need not be here. Exit code 1 when anything differs by more than
    it may.
    """
    from faqbench.export.verify import verify_folder

    words, _ = read_arguments("verify", arguments, Keys, n_words=1)
    if not words:
        raise UserError("verify needs the folder of an exported checkpoint.")
    verdict = verify_folder(Path(words[0]).expanduser())
    print_table(
        Table.of(
            [
                {
                    "compared": check.name,
                    "passed": "yes" if check.passed else "NO",
                    "largest difference": f"{check.largest:.2g}",
                    "allowed": f"{check.tolerance:.2g}",
                    "where": check.where,
                }
                for check in verdict.checks
            ]
        )
    )
    print(
        f"Loaded by {verdict.loader}; "
        f"{verdict.n_equal} of {verdict.n_linears} linears are then equal to the bit."
    )
    print(f"{'PASS' if verdict.passed else 'FAIL'}: {words[0]} against {verdict.run_id}")
    return 0 if verdict.passed else 1
