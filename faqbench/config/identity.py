"""Which part of an experiment decides its result, and the run id made from it.

What does not matter is left out, so that equal results have equal ids: the baseline ignores bits,
group size and calibration; a method that reads no activations ignores calibration; an option of a
stage that is off is dropped; where things are written, shown and computed (paths, tracking, report,
device) never counts.
"""

from __future__ import annotations

import hashlib
import json

from faqbench.config.calibration import MAX_CHARACTERS, is_hub_set, is_table
from faqbench.config.experiment import Experiment

_LONGEST_SLUG = 160  # characters, all of them ASCII


def identity(experiment: Experiment) -> dict[str, object]:
    """Return the JSON mapping of everything that the experiment's result depends on."""
    full = experiment.model_dump(mode="json")
    model = {k: v for k, v in full["model"].items() if k not in {"notes", "group_size", "add_bos"}}
    evaluation = {k: v for k, v in full["evaluation"].items() if k not in {"name", "keep_items"}}
    evaluation |= {"n_windows": experiment.n_windows(), "n_documents": experiment.n_documents()}
    if any(p.startswith("wikitext2") for p in experiment.evaluation.protocols):
        evaluation["wikitext2_path"] = full["data"]["wikitext2_path"]
    result: dict[str, object] = {
        "model": model,
        "quant": quant_identity(experiment),
        "evaluation": evaluation,
        "dtype": experiment.dtype,
    }
    if experiment.needs_calibration:
        result["calibration"] = calibration_identity(experiment)
    return result


def quant_identity(experiment: Experiment) -> dict[str, object]:
    """Return the part of `quant` that decides the quantized weights, options of idle stages dropped."""
    quant = experiment.quant.model_dump(mode="json")
    del quant["name"], quant["trace_windows"]
    if not experiment.quantizes:
        return {"round": "none"}
    searches = quant["scale"] != "none" or quant["clip"] != "none"
    if quant["correct"] == "qep":  # these two are LoaQ's
        del quant["correction"]["variant"], quant["correction"]["residual_strength"]
    strength = quant["correction"]["strength"]
    if isinstance(strength, dict) and len(set(strength.values())) == 1:
        quant["correction"]["strength"] = next(iter(strength.values()))
    keep = {
        "search": searches,
        "preview": quant["scale"] == "faq",
        "gptq": quant["round"] == "gptq",
        "correction": quant["correct"] != "none",
    }
    return {k: v for k, v in quant.items() if keep.get(k, True)}


def calibration_identity(experiment: Experiment) -> dict[str, object]:
    """Return what decides the calibration tokens and the statistics taken from them.

    A scenario is what it changes: the same windows by `scenario` or by `calibration` are the same.
    """
    calibration, scenario = experiment.calibration, experiment.scenario
    result: dict[str, object] = calibration.model_dump(
        mode="json",
        include={"seq_len", "seed", "add_bos", "tokens", "dtype", "batch_size"},
    )
    result["n_samples"] = experiment.n_calibration_samples
    if scenario.random_tokens:
        return result | {"source": "random tokens"}
    if scenario.leak:
        result["source"] = "evaluation tokens"
    else:
        result |= _corpus_identity(experiment)
    changes = {"shuffle_tokens", "noise_rate"}
    if not scenario.leak:
        changes |= {"min_characters", "max_characters", "length_power", "rarity"}
        result |= {"copies": scenario.copies} if (scenario.copies or 1) > 1 else {}
    if calibration.allow_repeat:
        result["allow_repeat"] = True
    # Zero leaves a part alone, as null does.
    return result | {k: v for k, v in scenario.model_dump(include=changes).items() if v}


def _corpus_identity(experiment: Experiment) -> dict[str, object]:
    calibration, mixture = experiment.calibration, experiment.calibration_mixture
    result: dict[str, object] = {"mixture": mixture, "documents": calibration.documents}
    if any(map(is_hub_set, mixture)):
        result["hub"] = calibration.hub.model_dump(mode="json")
    if any(is_hub_set(domain) or is_table(domain) for domain in mixture):
        result["column"] = calibration.column
    if calibration.max_characters != MAX_CHARACTERS:
        result["max_characters"] = calibration.max_characters
    return result


def grid_slug(experiment: Experiment) -> list[str]:
    """Return bits and group size as parts of a name, `w3` and `g64`; `grow` is one group per row."""
    quant = experiment.quant
    return [f"w{quant.bits}", f"g{quant.group_size}".replace("-1", "row")]


def run_id(experiment: Experiment) -> str:
    """Return a readable slug and a hash of the identity, a name that is safe as a folder.

    Long names of models, methods and scenarios are cut, so that the files beside a record, whose names are
    longer than the id, keep within what file systems allow (255 bytes).

    Example: `smollm2-135m-faq-w3-g64-s0-1f0c9a2b7d`.
    """
    text = json.dumps(identity(experiment), sort_keys=True, separators=(",", ":"))
    parts = [experiment.model.name, experiment.quant.name]
    if experiment.quantizes:
        parts += grid_slug(experiment)
    if experiment.needs_calibration:
        parts += [f"s{experiment.calibration.seed}"]
        if experiment.scenario.name != "matched":
            parts += [experiment.scenario.name]
    slug = "-".join(parts)[:_LONGEST_SLUG]
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
