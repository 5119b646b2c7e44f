"""Writing a run as a checkpoint: the whole story of `faqbench export`, all of it or nothing.

    <into>/
        config.json                 the model's own, with the `quantization_config` that its loader expects
        model.safetensors           or shards with their index; model.gguf for GGUF
        tokenizer, generation config, chat template, notices of the model that was quantized
        README.md                   the model card: what was measured, of what, and how to check it
        faqbench/                   what `faqbench verify` needs: facts.json, evidence, the run's record
        manifest.json               sha256 of every file

The folder appears by one rename when everything in it is written. An export that is stopped leaves what it
has packed in `.<into>.unfinished` beside it, and the same command goes on from there.

To add a layout: a file with the functions of `Layout`, as a module or an object, and its line in `FORMATS`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from faqbench import __version__, formatting
from faqbench.config import Experiment, UserError
from faqbench.export.evidence import hash_weight, probe, prompt_evidence, protocol_evidence
from faqbench.export.fold import Part, StoredModel, stored_weight
from faqbench.files import explain_os_error, open_to_readers
from faqbench.hardware import resolve_device
from faqbench.models import budget_of, load_model, pinned
from faqbench.models.sources import checkpoint_folder
from faqbench.processes import give_back
from faqbench.quantization import QuantizedLinear, fingerprint_codes
from faqbench.quantization.checkpoint import QuantizedTensors, StoredLinears
from faqbench.records import Metric, RunRecord
from faqbench.records.store import without_nan
from faqbench.stages import Progress, write_manifest

FORMATS = {
    "compressed-tensors": "faqbench.export.compressed_tensors",
    "gptq": "faqbench.export.words:V1",
    "gptq_v2": "faqbench.export.words:V2",
    "awq": "faqbench.export.words:GEMM",
    "gguf": "faqbench.export.gguf_file",
}
_WEIGHTS = ("*.safetensors", "*.gguf")
_NOTICES = ("LICENSE*", "NOTICE*", "TERMS*", "USE_POLICY*")
_ROOM = 1.1  # what must be free, as a multiple of what will be written
_REMEDY = "free some space, or choose another folder with into="


class Sink(Protocol):
    """Where the parts of a model go, one by one."""

    def add(self, name: str, part: Part) -> None:
        """Take a parameter by its name, or a quantized linear by its full name."""

    def close(self) -> None:
        """Finish the files."""


class Layout(Protocol):
    """A way to store quantized weights."""

    def writer(self) -> str:
        """Return what packs, with its version."""

    def check(self, model: StoredModel) -> None:
        """Refuse a model that the layout cannot hold.

        Raises:
            UserError: with the reason, and the nearest configuration that it can.
        """

    def bits_of(self, part: Part) -> int:
        """Return the bits of a part in the files, by arithmetic: of a linear all that it is stored as."""

    def open_sink(self, folder: Path, model: StoredModel, most_bytes: int) -> Sink:
        """Begin the checkpoint of a model, in files of so many bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportRequest:
    """What to write, and where.

    Attributes:
        record: of the run, finished.
        experiment: that its configuration describes.
        scores: its losses per token or window, by protocol.
        codes: the folder of its quantized linears.
        format: a key of `FORMATS`.
        into: the folder to make.
        shard_bytes: of one file of weights at most, a single tensor aside.
    """

    record: RunRecord
    experiment: Experiment
    scores: Mapping[str, NDArray[Any]]
    codes: Path
    format: str
    into: Path
    shard_bytes: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        n_bytes: of the files of weights.
        bits_per_weight: of the quantized linears, as stored.
        bits_per_parameter: of all parameters, as stored.
    """

    n_bytes: int
    bits_per_weight: float
    bits_per_parameter: float


def export_run(request: ExportRequest, progress: Progress) -> Exported:
    """Write a run's measured model as a checkpoint.

    Raises:
        UserError: when the folder exists, the disk lacks the space, the layout cannot hold the model, or
            the full precision model is no longer the one that was quantized.
    """
    if os.path.lexists(request.into):
        raise UserError(f"into={request.into} exists; nothing there is replaced: choose another folder.")
    evidence, model, generation = _measured(request, progress)
    layout: Layout = resolve_name(FORMATS[request.format])
    layout.check(model)
    _check_space(request.into, _most_bytes(model))
    with explain_os_error("write the checkpoint", request.into, _REMEDY), _unfinished(request) as folder:
        _write_about(folder, model, generation, checkpoint_folder(pinned(request.experiment.model)))
        sink = layout.open_sink(folder, model, request.shard_bytes)
        sizes, hashes = _write_weights(layout, sink, model, evidence, progress)
        facts = _facts(request, model, layout, sizes, hashes)
        _write_evidence(folder, facts, evidence, request)
        (folder / "README.md").write_text(model_card(facts, request.record))
        write_manifest(folder, {"run_id": request.record.run_id, "format": request.format})
    return Exported(
        n_bytes=sum(p.stat().st_size for kind in _WEIGHTS for p in request.into.glob(kind)),
        bits_per_weight=facts["bits_per_weight"],
        bits_per_parameter=facts["bits_per_parameter"],
    )


@contextmanager
def _unfinished(request: ExportRequest) -> Iterator[Path]:
    """Yield the folder in which an export is under way, which takes its place when the block ends well.

    A process that is stopped leaves it for the next one; an error, after which the same would happen again,
    leaves nothing.
    """
    into = request.into.absolute()
    folder = into.with_name(f".{into.name}.unfinished")
    mark = folder.with_name(f"{folder.name}.json")  # what it is the beginning of
    codes = fingerprint_codes(request.codes)
    of = json.dumps([request.record.run_id, request.format, request.shard_bytes, codes, __version__])
    into.parent.mkdir(parents=True, exist_ok=True)
    with mark.open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if os.path.lexists(into):
            raise UserError(f"Another process has just written {request.into}.")
        held.seek(0)
        if held.read() != of or not folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            held.truncate(0)
            held.write(of)
            held.flush()
        try:
            yield folder
            open_to_readers(folder)
            folder.rename(into)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            mark.unlink()
            raise
        mark.unlink()


def _measured(request: ExportRequest, progress: Progress) -> tuple[dict[str, Tensor], StoredModel, Any]:
    """Return the evidence of the measured model, the model to write, and its generation config.

    Raises:
        UserError: when the full precision model is another than the run's.
    """
    experiment, record = request.experiment, request.record
    device = resolve_device(experiment.device)
    dtypes = [getattr(torch, d) for d in (experiment.calibration.dtype, experiment.dtype)]
    loaded = load_model(
        pinned(experiment.model), dtypes[0], device, progress, budget=budget_of(experiment.memory, device)
    )
    if loaded.fingerprint != record.fingerprints.get("weights"):
        raise UserError(
            f"{record.run_id} was made from other weights than model={experiment.model.name} has now; run "
            "the cell again, with rerun=true, and export that."
        )
    loaded.view.empty()
    give_back()
    base = loaded.view.tensors
    quantized = QuantizedTensors(base, StoredLinears(request.codes, device))
    measured = loaded.view.view(tensors=quantized, dtypes=dtypes)
    evidence = prompt_evidence(measured, loaded.tokenizer, experiment)
    measured.empty()
    give_back()
    evidence |= protocol_evidence(
        request.scores, record.fingerprints, loaded.tokenizer, experiment, progress
    )
    module = measured.module
    module.config.dtype = dtypes[1]
    model = StoredModel(
        config=module.config,
        tokenizer=loaded.tokenizer,
        architecture=loaded.architecture,
        names=tuple(name for name, _ in module.named_parameters()),
        base=base,
        codes=request.codes,
        weights_dtype=dtypes[0],
        dtype=dtypes[1],
    )
    return evidence, model, module.generation_config


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Bits by arithmetic: of the quantized linears, and of all parameters."""

    linear_bits: int = 0
    other_bits: int = 0
    n_weights: int = 0
    n_others: int = 0

    @property
    def n_bytes(self) -> int:
        return (self.linear_bits + self.other_bits) // 8

    def with_part(self, part: Part, layout: Layout) -> _Sizes:
        """Return the sizes with those of one more part in a layout."""
        bits = layout.bits_of(part)
        if isinstance(part, QuantizedLinear):
            n_weights = self.n_weights + part.qvalue.numel()
            return replace(self, linear_bits=self.linear_bits + bits, n_weights=n_weights)
        return replace(self, other_bits=self.other_bits + bits, n_others=self.n_others + part.numel())


def _most_bytes(model: StoredModel) -> int:
    """Return how large the weights may become, from shapes alone."""
    bits = 0.0
    for name in model.names:
        shape = model.base.shape(name) or ()
        grid = model.grids.get(name.removesuffix(".weight"))
        per_weight = 8.0 * model.dtype.itemsize
        if grid is not None:  # a scale and a zero point for each group take 64 bits at most
            per_weight = grid.bits + 64 / grid.group_width(shape[-1])
        bits += prod(shape) * per_weight
    return int(bits / 8)


def _check_space(into: Path, n_bytes: int) -> None:
    parent = next(p for p in into.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < _ROOM * n_bytes:
        raise UserError(
            f"The checkpoint may take {formatting.n_bytes(n_bytes)}, but {parent} has "
            f"{formatting.n_bytes(free)} free; {_REMEDY}."
        )


def _write_about(folder: Path, model: StoredModel, generation: Any, source: Path | None) -> None:
    """Write what comes with the model: tokenizer and chat template, generation config, notices."""
    model.tokenizer.save_pretrained(folder)
    if generation is not None:
        generation.save_pretrained(folder)
    if source is not None:
        for path in sorted(path for pattern in _NOTICES for path in source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)


def _write_weights(
    layout: Layout, sink: Sink, model: StoredModel, evidence: dict[str, Tensor], progress: Progress
) -> tuple[_Sizes, dict[str, str]]:
    """Write all tensors, add probes to the evidence, and return sizes and each linear's weight's hash."""
    sizes, hashes = _Sizes(), dict[str, str]()
    with progress.activity("export", len(model.names)) as advance:
        for name, part in model.parts():
            sink.add(name, part)
            sizes = sizes.with_part(part, layout)
            if isinstance(part, QuantizedLinear):
                weight = stored_weight(part)
                hashes[name] = hash_weight(weight)
                width = f"probe/{weight.shape[1]}"
                if width not in evidence:
                    evidence[width] = probe(weight.shape[1])
                evidence[f"probed/{name}"] = weight @ evidence[width].float()
            advance()
        sink.close()
    return sizes, hashes


def _facts(
    request: ExportRequest, model: StoredModel, layout: Layout, sizes: _Sizes, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Return what a reader and a verification need to know of an export."""
    grids = {name: dataclasses.asdict(grid) for name, grid in model.grids.items()}
    return {
        "run_id": request.record.run_id,
        "faqbench": __version__,
        "format": request.format,
        "writer": layout.writer(),
        "dtype": request.experiment.dtype,
        "bits_per_weight_measured": request.record.bits_per_weight,
        "bits_per_weight": sizes.linear_bits / sizes.n_weights,
        "bits_per_parameter": 8 * sizes.n_bytes / (sizes.n_weights + sizes.n_others),
        "n_quantized_weights": sizes.n_weights,
        "n_parameters": sizes.n_weights + sizes.n_others,
        "grids": grids,
        "kept": model.kept,
        "linears": dict(hashes),
        "config": request.experiment.model_dump(mode="json"),
    }


def _write_evidence(
    folder: Path, facts: Mapping[str, Any], evidence: Mapping[str, Tensor], request: ExportRequest
) -> None:
    place = folder / "faqbench"
    place.mkdir(exist_ok=True)
    (place / "facts.json").write_text(json.dumps(facts, indent=1))
    save_file(dict(evidence), place / "evidence.safetensors")
    record = json.dumps(without_nan(request.record.to_json()), indent=1, allow_nan=False)
    (place / "record.json").write_text(record)


_NORMAL_95 = 1.96


def _why_more(facts: Mapping[str, Any]) -> str:
    """Say why a linear takes other bits in the files than a run counts, by what its grids leave open."""
    scales = ", with scales of 16 bits; measured and stored they are of 32"
    is_open = facts["config"]["quant"]["scale_dtype"] is None
    return scales if is_open else f"; the rest is what `{facts['format']}` stores beyond the run's grid"


def model_card(facts: Mapping[str, Any], record: RunRecord) -> str:
    """Return README.md of an exported folder.

    Args:
        facts: as `faqbench/facts.json` has them.
        record: of the run.
    """
    model = facts["config"]["model"]
    base = model["hub_id"] or model["asset"] or model["name"]
    head = {"tags": ["quantized", "faqbench", facts["format"]], "base_model_relation": "quantized"}
    if model["hub_id"]:
        head["base_model"] = model["hub_id"]
    measured = facts["bits_per_weight_measured"]
    stored = facts["bits_per_weight"]
    counted = (
        ""
        if measured is None or abs(measured - stored) < 5e-4
        else f" The run counted {measured:.3f}{_why_more(facts)}."
    )
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {base}, quantized: {record.run_id}",
        "The numbers below were measured with these very weights: codes, scales and zero points are those "
        f"of the run `{record.run_id}` of faqbench {facts['faqbench']}, packed as `{facts['format']}` by "
        f"{facts['writer']}; nothing was quantized anew.",
        f"**Size.** {stored:.3f} bits per weight of the quantized linears, scales and zero points counted; "
        f"{facts['bits_per_parameter']:.3f} bits per parameter with embeddings and all else.{counted}",
        "**Measured.** Intervals are of 95 %, over windows or items.",
        _table([m for m in record.metrics if m.value is not None]),
        "**Verify.** `python -m faqbench verify FOLDER` loads this folder with transformers alone and "
        "compares weights, logits and perplexity with what was measured; `faqbench/` holds what it needs.",
        f"**Licence.** The licence of {base} applies to these weights too; the notices that came with it "
        "are kept in this folder.",
        f"**Configuration.**\n\n```yaml\n{yaml.safe_dump(facts['config'], sort_keys=False, width=100)}```",
    ]
    if record.warnings:
        lines.insert(5, "\n".join(f"* Note: {warning}" for warning in record.warnings))
    return "\n\n".join(lines) + "\n"


def _table(metrics: Sequence[Metric]) -> str:
    rows = ["| task | metric | value | interval | n |", "|---|---|---|---|---|"]
    for m in metrics:
        assert m.value is not None
        reach = "" if m.stderr is None else _interval(m.value, _NORMAL_95 * m.stderr)
        rows.append(f"| {m.task} | {m.name} | {m.value:.5g} | {reach} | {m.n} |")
    return "\n".join(rows)


def _interval(value: float, reach: float) -> str:
    return f"{value - reach:.5g} to {value + reach:.5g}"
