"""What a record's config says about a cell: its method, grid, draw, and the keys that matter.

Records are read leniently: a key that an older or foreign record lacks is simply absent.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from faqbench.config.identity import deciding_config
from faqbench.config.method import LABELS
from faqbench.config.section import Margin, parse_margin, preset
from faqbench.records import RunRecord, truncated_requests

# Of the setting of a comparison: a draw is one of several, a name says nothing that other keys do not.
_NOT_OF_SETTING = {"calibration.seed"}
_PLAIN = re.compile(r"[A-Za-z_/][\w./@+-]*(:[\w./@+-]+)?")  # what Hydra reads as text without quotes
_NO_TEXT = {"null", "true", "false", "inf", "nan"}
_ADDED_LATER = {"model", "tokenizer"}  # fingerprints that records did not always have


def config_value(config: Mapping[str, Any], key: str) -> str | None:
    """Return a config value as text by dotted key; a group's name stands for the group."""
    value = _at(config, key)
    if isinstance(value, Mapping):
        value = value.get("name")
    return None if value is None else as_text(value)


def as_text(value: object) -> str:
    """Return a config value the way Hydra's command line spells it."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}"
    return json.dumps(value, ensure_ascii=False, default=str)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and their values as text, in the config's order."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = as_text(value)
    return flat


def is_baseline(record: RunRecord) -> bool:
    """Whether this is the full precision model."""
    return not record.method.quantizes


def is_calibrated(record: RunRecord) -> bool:
    """Whether any stage of the method reads activations; not so for the baseline and plain RTN."""
    return record.method.is_calibrated


def key_label(key: str) -> str:
    """Return the last word of a dotted key; a group's name stands for the group."""
    return key.removesuffix(".name").rsplit(".")[-1]


def model_name(record: RunRecord) -> str:
    """Return the model's name."""
    return config_value(record.config, "model.name") or "unknown model"


def method_name(record: RunRecord) -> str:
    """Return the preset's name."""
    return config_value(record.config, "quant.name") or "unknown method"


def display_method(name: str) -> str:
    """Return a method's name as papers write it."""
    parts = name.split("-")
    return "-".join(LABELS[p] for p in parts) if all(p in LABELS for p in parts) else name


def method_order(name: str) -> tuple[int, str]:
    """Return the sort key that puts methods in the order in which a reader expects them."""
    order = list(LABELS)
    head = name.split("-")[0]
    return (order.index(head) if head in order else len(order), name)


def is_foreign(record: RunRecord) -> bool:
    """Whether another tool made the quantized weights."""
    return record.method.is_foreign


def made_by(record: RunRecord) -> str:
    """Return the tool that made the weights, with its version."""
    if is_foreign(record):
        return (
            record.extra.get("checkpoint", {}).get("made_by") or "a tool that its checkpoint does not name"
        )
    return f"faqbench {record.environment.get('faqbench', '')}".rstrip()


def effort(record: RunRecord) -> tuple[float | None, int | None]:
    """Return the seconds that quantizing took, and its peak memory; None where it was not done in this run.

    Of our own methods the statistics count, and the peak is that of the whole run.
    """
    if is_foreign(record):
        checkpoint = record.extra.get("checkpoint", {})
        return checkpoint.get("seconds"), checkpoint.get("peak_memory_bytes")
    stages = [record.stages[name] for name in ("statistics", "quantize") if name in record.stages]
    if not stages or any(stage.cached for stage in stages):
        return None, None
    return sum(stage.seconds for stage in stages), record.peak_memory_bytes


def seed(record: RunRecord) -> str:
    """Return the calibration draw's seed."""
    nested = config_value(record.config, "calibration.seed")
    return nested or config_value(record.config, "seed") or "0"


def activation_widths(record: RunRecord) -> str | None:
    """Return the bits of the linears' inputs and of keys and values, `A8KV4`; None where all are whole."""
    grids = (("A", "bits"), ("KV", "kv_bits"))
    widths = [(a, config_value(record.config, f"quant.activations.{key}")) for a, key in grids]
    return "".join(f"{letter}{bits}" for letter, bits in widths if bits is not None) or None


def weight_bits(keys: Mapping[str, str]) -> int | None:
    """Return the bits per code among the keys that decide a result; None where nothing is quantized."""
    text = keys.get("quant.bits", "")
    return int(text) if text.isdigit() else None


def widths(record: RunRecord, keys: Mapping[str, str]) -> str:
    """Return the bits of weights, or of weights and activations as `W4A8`; nothing where both are whole.

    Args:
        record: a run.
        keys: those that decide its result.
    """
    bits, activations = weight_bits(keys), activation_widths(record)
    return str(bits or "") if bits is None or activations is None else f"W{bits}{activations}"


def activation_keys(record: RunRecord) -> dict[str, str]:
    """Return what a row's keys say of activations: `activations` itself, and the grid where there is one.

    All of the grid is named, since W4A4 with other operands on the grid is another setting.
    """
    if is_baseline(record):
        return {}
    widths = activation_widths(record)
    if widths is None:
        return {"activations": "full"}
    section = flatten(record.config["quant"]["activations"], "quant.activations.")
    del section["quant.activations.bits"]
    return {"activations": widths} | section


def deciding_keys(record: RunRecord) -> dict[str, str]:
    """Return the keys that decide this cell's result, without idle stages' options and the seed."""
    flat = flatten({k: v for k, v in deciding_config(record.config).items() if v != {}})
    return {k: v for k, v in flat.items() if k not in _NOT_OF_SETTING}


def made_of(records: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Return the fingerprints of what each run was made of: model, tokenizer, scored texts and items.

    The calibration tokens, which are a draw's own, are left out. A record from before model and tokenizer
    were recorded has those that all others of its weights have.
    """
    prints_of: dict[tuple[str | None, str], set[str]] = {}
    for record in records:
        weights = record.fingerprints.get("weights")
        for kind in _ADDED_LATER & record.fingerprints.keys():
            prints_of.setdefault((weights, kind), set()).add(record.fingerprints[kind])
    parts = []
    for record in records:
        prints = {k: v for k, v in sorted(record.fingerprints.items()) if k != "calibration"}
        for kind in _ADDED_LATER - prints.keys():
            others = prints_of.get((prints.get("weights"), kind), set())
            prints |= {kind: next(iter(others))} if len(others) == 1 else {}
        parts.append(prints)
    return parts


def setting_identity(record: RunRecord, prints: Mapping[str, str]) -> str:
    """Return a text that is equal for the draws of one method in one setting, and for no other runs.

    It is the identity that names a run, its seed left out, with the fingerprints of what was found
    (`made_of`) in the place of the names of where it was looked for.
    """
    stated = dict(record.identity)
    calibration = {k: v for k, v in stated.pop("calibration", {}).items() if k != "seed"}
    if "weights" in prints:
        del stated["model"]
    if "checkpoint" in prints:
        stated["quant"] = {k: v for k, v in stated["quant"].items() if k != "checkpoint"}
    if any(k.startswith("protocol/") for k in prints):
        evaluation = stated["evaluation"].items()
        stated["evaluation"] = {k: v for k, v in evaluation if k != "wikitext2_path"}
    return json.dumps([method_name(record), stated, calibration, prints], sort_keys=True)


def truncation_notes(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return a sentence for each task of which some run cut requests at the model's context."""
    most: dict[str, tuple[int, int]] = {}
    for record in records:
        for task, counts in truncated_requests(record).items():
            most[task] = max(most.get(task, (0, 0)), counts)
    return tuple(
        f"{task}: {n} of {total} requests ({n / total:.1%}) are longer than the model's context and lost "
        "their beginning."
        for task, (n, total) in most.items()
    )


def stated_margin(records: Sequence[RunRecord]) -> Margin | None:
    """Return the margin that the runs' configurations state alike, or None."""
    stated = {config_value(record.config, "report.margin") for record in records}
    (text,) = stated if len(stated) == 1 else (None,)
    try:
        return None if text is None else parse_margin(text)
    except ValueError:  # a foreign record's
        return None


def grid_kind(record: RunRecord) -> str:
    """Return whether codes are symmetric, and how symmetric ones are spread over a group's range."""
    symmetric = config_value(record.config, "quant.symmetric")
    if symmetric != "true":
        return {"false": "asymmetric"}.get(symmetric or "", symmetric or "unknown")
    spread = config_value(record.config, "quant.symmetric_grid") or "signed"
    return f"symmetric ({spread.replace('_', ' ')})"


def repeat_command(record: RunRecord) -> str:
    """Return the command that repeats a run: its presets, and every key that decides the result otherwise.

    `config.yaml` in the run's folder says the same whole.
    """
    config = record.config
    knobs = ["bits", "group_size", "symmetric"] if record.method.quantizes else []
    knobs += ["window", "gamma"] if record.method.owns("preview") else []
    knobs += ["seed"] if is_calibrated(record) else []
    words = {k: config_value(config, k) for k in ("model", "quant", "evaluation", *knobs, "limit", "dtype")}
    if config_value(config, "quant.round") == "external":
        words["quant"] = f"external/{words['quant']}"
    if is_calibrated(record):
        words["scenario"] = config_value(config, "scenario")
    for group, keys in deciding_config(config).items():
        if isinstance(keys, Mapping):
            chosen = "wiki" if group == "calibration" else str(words.get(group))
            words |= _unlike(preset(group, chosen), keys, config, f"{group}.")
    stated = [f"{k}={v}" for k, v in words.items() if v is not None and (k, v) != ("scenario", "matched")]
    return shlex.join(["python", "-m", "faqbench", *stated])


def _unlike(
    settings: Mapping[str, Any], keys: Mapping[str, Any], config: Mapping[str, Any], place: str
) -> dict[str, str | None]:
    """Return the deciding keys of a section that are not as its preset says, as Hydra spells them.

    Args:
        settings: of the preset, in which `${key}` is what the configuration has there.
        keys: those that decide the result, by which the section's values are read.
        config: the whole configuration.
        place: the section's dotted name, with a dot.
    """
    section = _at(config, place[:-1]) or {}
    unlike: dict[str, str | None] = {}
    for key in keys:
        value, usual = section.get(key), settings.get(key)
        if isinstance(usual, str) and usual.startswith("${"):
            usual = _at(config, usual[2:-1])
        if isinstance(value, Mapping) and isinstance(usual, Mapping) and isinstance(keys[key], Mapping):
            unlike |= _unlike(usual, keys[key], config, f"{place}{key}.")
        elif value != usual and key != "name":
            unlike[f"{place}{key}"] = _for_hydra(value)
    return unlike


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _for_hydra(value: object) -> str:
    """Return a value in the grammar of Hydra's command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_for_hydra(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_for_hydra, value)) + "]"
    if isinstance(value, str) and (value.lower() in _NO_TEXT or not _PLAIN.fullmatch(value)):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return as_text(value)
