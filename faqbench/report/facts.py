"""What a record's config says about a cell: its method, grid, draw, and the keys that matter.

Records are read leniently: a key that an older or foreign record lacks is simply absent.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from faqbench.records import RunRecord

# Never part of a comparison: where things are written and shown, and the knobs that repeat a
# nested key (bits is quant.bits, seed is calibration.seed, and so on).
_IGNORED = {
    "paths", "tracking", "report", "rerun", "device", "data", "bits", "group_size", "symmetric",
    "window", "gamma", "seed", "limit", "allow_repeat", "presearch",
}  # fmt: skip
_IGNORED_KEYS = {
    "model.notes", "model.group_size", "model.path", "quant.name", "calibration.seed",
    "calibration.batch_size", "calibration.n_reference", "scenario.allow_overlap",
    "evaluation.keep_items", "model.add_bos",
}  # fmt: skip
_NAMES = {"fp": "full precision", "loaq": "LoaQ"}
_KNOWN = {"rtn", "awq", "faq", "gptq", "qep", "loaq", "lrquant"}


def config_value(config: Mapping[str, Any], key: str) -> str | None:
    """Return a config value as text by dotted key; a group's name stands for the group."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    if isinstance(value, Mapping):
        value = value.get("name")
    return None if value is None else as_text(value)


def as_text(value: object) -> str:
    """Return a config value the way Hydra's command line spells it."""
    if isinstance(value, str):
        return value
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
    return config_value(record.config, "quant.round") == "none"


def is_calibrated(record: RunRecord) -> bool:
    """Whether any stage of the method reads activations; not so for the baseline and plain RTN."""
    stages = [config_value(record.config, f"quant.{s}") for s in ("scale", "clip", "correct")]
    rounds = config_value(record.config, "quant.round")
    return rounds != "none" and (any(s not in (None, "none") for s in stages) or rounds == "gptq")


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
    if name in _NAMES:
        return _NAMES[name]
    parts = name.split("-")
    if all(p in _KNOWN for p in parts):
        return "-".join(_NAMES.get(p, p.upper()) for p in parts)
    return name


def method_order(name: str) -> tuple[int, str]:
    """Return the sort key that puts methods in the order in which a reader expects them."""
    order = ["fp", "rtn", "awq", "faq", "gptq", "qep", "loaq"]
    head = name.split("-")[0]
    return (order.index(head) if head in order else len(order), name)


def seed(record: RunRecord) -> str:
    """Return the calibration draw's seed."""
    nested = config_value(record.config, "calibration.seed")
    return nested or config_value(record.config, "seed") or "0"


def deciding_keys(record: RunRecord) -> dict[str, str]:
    """Return the keys that decide this cell's result, without idle stages' options and the seed."""
    config = {k: v for k, v in record.config.items() if k not in _IGNORED}
    quant = dict(config.get("quant") or {})
    if is_baseline(record):
        quant = {}
    searches = (quant.get("scale"), quant.get("clip")) != ("none", "none")
    active = {
        "search": searches,
        "preview": quant.get("scale") == "faq",
        "gptq": quant.get("round") == "gptq",
        "correction": quant.get("correct") != "none",
    }
    config["quant"] = {k: v for k, v in quant.items() if active.get(k, True)}
    if not is_calibrated(record):
        config.pop("calibration", None)
        config.pop("scenario", None)
    return {k: v for k, v in flatten(config).items() if k not in _IGNORED_KEYS}


def repeat_command(record: RunRecord, varying: Mapping[str, str]) -> str:
    """Return the command that repeats a run, the keys that vary within the report included.

    `config.yaml` in the run's folder remains the exact statement.
    """
    keys = ["model", "quant", "evaluation"]
    if not is_baseline(record):
        keys += ["bits", "group_size", "symmetric"]
    if is_calibrated(record):
        keys += ["scenario", "calibration.domain", "calibration.n_samples", "calibration.seq_len"]
        keys += ["window", "gamma"] if config_value(record.config, "quant.scale") == "faq" else []
        keys += ["seed"]
    keys += ["limit", "dtype"]
    spelled = {k: config_value(record.config, k) for k in keys}
    extra = {k: v for k, v in varying.items() if k not in keys and k.rsplit(".")[-1] not in keys}
    words = [f"{k}={v}" for k, v in {**spelled, **extra}.items() if v is not None]
    words = [w for w in words if w not in {"limit=null", "scenario=matched"} and ".name=" not in w]
    return shlex.join(["python", "-m", "faqbench", *words])
