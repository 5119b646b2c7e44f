"""What decides a result: the one definition that run ids, cache keys, records and reports share.

    deciding_config    the keys of a configuration that decide its result, named as in `conf/`
    identity_of        the same with synonyms made one: equal results have equal identities
    quant_identity, calibration_identity    the parts of it that cache keys hold

All are functions of a configuration as a JSON mapping, so that a record of any age is judged by the
rules that name a new run; a key that an older record lacks counts as null. What does not matter is left
out: the baseline ignores bits, group size and calibration; a method that reads no activations ignores
calibration; an option of a stage that is off is dropped, as the table in `method.py` says; where things
are written, shown and computed (paths, tracking, report, device) never counts. Names (`quant.name`,
`scenario.name`) decide nothing.

A configuration says where model and texts come from; what was found there is told by the fingerprints of
a record, which reports and cache keys take in its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from faqbench.config.calibration import MAX_CHARACTERS, is_hub_set, is_table, shares_of
from faqbench.config.experiment import Experiment, smaller
from faqbench.config.method import Method, method_of

_Json = dict[str, Any]
# What a section holds that decides nothing, or that another key already says.
_NOT_OF_MODEL = {"notes", "group_size", "add_bos"}
_NOT_OF_EVALUATION = {"keep_items"}
_OF_CALIBRATION = ("seq_len", "seed", "add_bos", "tokens", "dtype", "batch_size")
_OF_WINDOWS = ("shuffle_tokens", "noise_rate")
_OF_TEXTS = ("min_characters", "max_characters", "length_power", "rarity")
_USUAL_WEIGHTS = "float32"  # the dtype that run ids do not name

_LONGEST_SLUG = 160  # characters, all of them ASCII


def identity(experiment: Experiment) -> _Json:
    """Return the JSON mapping of everything that the experiment's result depends on."""
    return identity_of(experiment.model_dump(mode="json"))


def identity_of(config: Mapping[str, Any]) -> _Json:
    """Return the same of a configuration, as an experiment or a record has it."""
    method = method_in(config)
    deciding = _deciding_config(config, method)
    evaluation = {k: v for k, v in deciding["evaluation"].items() if k != "name"}
    result: _Json = {
        "model": deciding["model"],
        "quant": deciding["quant"],
        "evaluation": evaluation | deciding["data"],
        "dtype": deciding["dtype"],
    }
    if method.is_calibrated:
        result["calibration"] = _calibration_identity(config)
    elif deciding["calibration"]:
        result["weights_dtype"] = deciding["calibration"]["dtype"]
    return result


def deciding_config(config: Mapping[str, Any]) -> _Json:
    """Return the keys of a configuration that decide its result, nested and named as in `conf/`.

    The knobs that repeat a nested key (`bits` is `quant.bits`, `seed` is `calibration.seed`) are left
    out; `limit` is in the numbers of windows and documents that it caps.
    """
    return _deciding_config(config, method_in(config))


def _deciding_config(config: Mapping[str, Any], method: Method) -> _Json:
    limit, evaluation = config.get("limit"), _section(config, "evaluation")
    caps = {k: smaller(evaluation.get(k), limit) for k in ("n_windows", "n_documents")}
    reads_wikitext2 = any(p.startswith("wikitext2") for p in evaluation.get("protocols") or ())
    path = _section(config, "data").get("wikitext2_path")
    return {
        "model": _without(_section(config, "model"), _NOT_OF_MODEL),
        "quant": _quant_identity(_section(config, "quant"), method),
        "calibration": _deciding_calibration(config, method),
        "scenario": _without(_section(config, "scenario"), {"allow_overlap"})
        if method.is_calibrated
        else {},
        "evaluation": _without(evaluation, _NOT_OF_EVALUATION) | caps,
        "data": {"wikitext2_path": path} if reads_wikitext2 else {},
        "dtype": config.get("dtype"),
    }


def quantizes(config: Mapping[str, Any]) -> bool:
    """Whether a configuration puts any weight on a grid; false for the full precision baseline."""
    return method_in(config).quantizes


def needs_calibration(config: Mapping[str, Any]) -> bool:
    """Whether any stage of a configuration reads activations; false for the baseline and plain RTN."""
    return method_in(config).is_calibrated


def method_in(config: Mapping[str, Any]) -> Method:
    """Return the method that a configuration composes."""
    return method_of(_section(config, "quant"))


def quant_identity(experiment: Experiment) -> _Json:
    """Return the part of `quant` that decides the quantized weights, options of idle stages dropped."""
    return _quant_identity(experiment.quant.model_dump(mode="json"), method_of(experiment.quant))


def calibration_identity(experiment: Experiment) -> _Json:
    """Return what decides the calibration tokens and the statistics taken from them.

    A scenario is what it changes: the same windows by `scenario` or by `calibration` are the same.
    """
    return _calibration_identity(experiment.model_dump(mode="json"))


def _quant_identity(quant: Mapping[str, Any], method: Method) -> _Json:
    strength = _section(quant, "correction").get("strength")
    if isinstance(strength, Mapping) and len(set(strength.values())) == 1:
        one = next(iter(strength.values()))
        quant = {**quant, "correction": {**quant["correction"], "strength": one}}
    return method.identity(quant)


def _deciding_calibration(config: Mapping[str, Any], method: Method) -> _Json:
    calibration = _section(config, "calibration")
    if not method.is_calibrated:  # the weights are read in this dtype by every method
        dtype = calibration.get("dtype") or _USUAL_WEIGHTS
        return {} if dtype == _USUAL_WEIGHTS else {"dtype": dtype}
    kept = _without(calibration, {"n_reference"})
    if kept.get("max_characters") == MAX_CHARACTERS:
        del kept["max_characters"]
    return kept if kept.get("allow_repeat") else _without(kept, {"allow_repeat"})


def _calibration_identity(config: Mapping[str, Any]) -> _Json:
    calibration, scenario = _section(config, "calibration"), _section(config, "scenario")
    result = {k: calibration.get(k) for k in _OF_CALIBRATION}
    result["n_samples"] = scenario.get("n_samples") or calibration.get("n_samples")
    if scenario.get("random_tokens"):
        return result | {"source": "random tokens"}
    if scenario.get("leak"):
        result["source"] = "evaluation tokens"
    else:
        result |= _corpus_identity(calibration, scenario)
    changes = _OF_WINDOWS if scenario.get("leak") else (*_OF_WINDOWS, *_OF_TEXTS)
    if not scenario.get("leak"):
        copies = scenario.get("copies") or 1
        result |= {"copies": copies} if copies > 1 else {}
    if calibration.get("allow_repeat"):
        result["allow_repeat"] = True
    # Zero leaves a part alone, as null does.
    return result | {k: scenario[k] for k in changes if scenario.get(k)}


def _corpus_identity(calibration: Mapping[str, Any], scenario: Mapping[str, Any]) -> _Json:
    drawn_from = calibration.get("mixture") or {calibration.get("domain"): 1.0}
    domain = scenario.get("domain")
    other = scenario.get("mixture") or ({domain: 1.0} if domain else None)
    mixture = shares_of(drawn_from, other, scenario.get("skew"))
    result: _Json = {"mixture": mixture, "documents": calibration.get("documents")}
    named = [str(domain) for domain in mixture]
    if any(map(is_hub_set, named)):
        result["hub"] = calibration.get("hub")
    if any(is_hub_set(domain) or is_table(domain) for domain in named):
        result["column"] = calibration.get("column")
    if calibration.get("max_characters", MAX_CHARACTERS) != MAX_CHARACTERS:
        result["max_characters"] = calibration["max_characters"]
    return result


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return config.get(name) or {}


def _without(section: Mapping[str, Any], keys: set[str]) -> _Json:
    return {k: v for k, v in section.items() if k not in keys}


def grid_slug(experiment: Experiment) -> list[str]:
    """Return bits and group size as parts of a name, `w3` or `w4a8`, and `g64`; `grow` is one per row."""
    quant = experiment.quant
    grids = (("a", quant.activations.bits), ("kv", quant.activations.kv_bits))
    activations = "".join(f"{letter}{bits}" for letter, bits in grids if bits is not None)
    return [f"w{quant.bits}{activations}", f"g{quant.group_size}".replace("-1", "row")]


def run_id(experiment: Experiment) -> str:
    """Return a readable slug and a hash of the identity, a name that is safe as a folder.

    Long names of models, methods and scenarios are cut, so that the files beside a record, whose names are
    longer than the id, keep within what file systems allow (255 bytes).

    Example: `smollm2-135m-faq-w3-g64-s0-1f0c9a2b7d`.
    """
    parts = [experiment.model.name, experiment.quant.name]
    if experiment.quantizes:
        parts += grid_slug(experiment)
    if experiment.needs_calibration:
        parts += [f"s{experiment.calibration.seed}"]
        if experiment.scenario.name != "matched":
            parts += [experiment.scenario.name]
    slug = "-".join(parts)[:_LONGEST_SLUG]
    return f"{slug}-{identity_hash(identity(experiment))}"


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the ten hex digits of an identity with which a run id ends."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
