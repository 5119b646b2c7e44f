"""From the mapping that Hydra composed to a frozen `Experiment`, or one sentence per mistake.

pydantic checks types, ranges and unknown keys; `_check_combination` the rules that join several keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from faqbench.config.calibration import check_calibration
from faqbench.config.experiment import (
    CheckpointSection,
    CorrectionSection,
    Experiment,
    LinearOverride,
    ModelSection,
    QuantSection,
    RoleName,
    TrackingSection,
    check_presearch,
)
from faqbench.config.method import Method, Reads, method_of
from faqbench.config.section import UserError, did_you_mean

# Keys for which the command line takes `auto` too, and puts what it means here in its place.
_RESOLVED_BEFORE = ("dtype",)
# What pydantic puts into an error's location that the user did not write.
_NOT_KEYS = ("number", "per role", "word", "[key]")
_LONGEST_TAG, _LONGEST_PROJECT, _NOT_IN_PROJECTS = 64, 128, "/\\#?%:"  # W&B's


def validate(raw: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a plain, fully resolved mapping describes.

    Raises:
        UserError: one sentence per mistake, each with the key, the value and what is allowed.
    """
    try:
        experiment = Experiment.model_validate(_paths_and_tuples(raw))
    except ValidationError as error:
        raise UserError(" ".join(dict.fromkeys(_sentence(e) for e in error.errors()))) from error
    _check_combination(experiment)
    return experiment


def _check_combination(experiment: Experiment) -> None:
    """Refuse keys that are allowed one by one and not together."""
    quant, model = experiment.quant, experiment.model
    _check_group_size("group_size", quant.group_size)
    _check_doubles(experiment)
    _check_stages(experiment.method)
    _check_foreign(experiment)
    _check_refinement(quant, experiment.method)
    _check_adaptation(experiment)
    _check_grid(quant)
    _check_correction(quant.correction)
    if experiment.method.owns("correction"):
        _check_held_out(quant.correction, experiment.n_calibration_samples)
        _check_left_to_rounding(quant, experiment.method)
    _check_activations(quant)
    _check_rotation(quant)
    check_calibration(experiment.calibration, experiment.scenario)
    check_presearch(experiment.presearch)
    check_tracking(experiment.tracking)
    for override in quant.overrides:
        _check_override(override)
    if experiment.memory_limit_gigabytes is not None and experiment.isolate != "process":
        raise UserError(
            f"memory_limit_gigabytes={experiment.memory_limit_gigabytes} limits a cell's own process, "
            f"but isolate={experiment.isolate}; set isolate=process."
        )
    needed = {"packaged": "asset", "hub": "hub_id", "path": "path", "random": "random"}[model.source]
    if not getattr(model, needed):
        raise UserError(f"model.source={model.source} needs model.{needed}, which is not set.")
    if model.source == "random" and model.tokenizer is None:
        raise UserError(
            "model.tokenizer=null is the model's own, and a model of random weights has none: set "
            "model.tokenizer=bytes, a hub id or a folder."
        )


def _check_doubles(experiment: Experiment) -> None:
    """Refuse what is named twice where once says all."""
    quant, evaluation = experiment.quant, experiment.evaluation
    lists: Mapping[str, tuple[str, Sequence[object]]] = {
        "evaluation.protocols": ("a protocol", evaluation.protocols),
        "evaluation.tasks": ("a task", evaluation.tasks),
        "scenario.allow_overlap": ("a pattern", experiment.scenario.allow_overlap),
        "presearch.domains": ("a domain", experiment.presearch.domains or ()),
        "tracking.tags": ("a tag", experiment.tracking.tags),
        "quant.skip": ("a pattern", quant.skip),
        "quant.external.requirements": ("a package", quant.external.requirements),
        "quant.correction.roles": ("a role", quant.correction.roles),
        "quant.rotation.places": ("a place", quant.rotation.places),
        "quant.activations.targets": ("a role", quant.activations.targets),
    }
    grids = [("a value", values) for grid in experiment.presearch.grids for _, values in grid]
    for key, (kind, names) in [*lists.items(), *(("presearch.grids", grid) for grid in grids)]:
        double = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if double is not None:
            raise UserError(f"{key}={spelled(names)} names {kind} twice: {double}.")


def check_tracking(tracking: TrackingSection) -> None:
    """Refuse what W&B would refuse, which it does only after a cell's work.

    Raises:
        UserError: one sentence with the key, its value and W&B's rule.
    """
    if tracking.name != "wandb":
        return
    for tag in tracking.tags:
        if not 1 <= len(tag) <= _LONGEST_TAG:
            raise UserError(
                f"tracking.tags has '{tag}', of {len(tag)} characters; a tag has 1 to {_LONGEST_TAG}."
            )
    for key, name in (("project", tracking.project), ("entity", tracking.entity)):
        if name is None:
            continue
        forbidden = [c for c in _NOT_IN_PROJECTS if c in name]
        if forbidden or not name or len(name) > _LONGEST_PROJECT:
            raise UserError(
                f"tracking.{key}={name} is not allowed: a name of 1 to {_LONGEST_PROJECT} characters "
                f"without {' '.join(_NOT_IN_PROJECTS)}."
            )


def _check_stages(method: Method) -> None:
    busy = [f"quant.{stage}" for stage, value in method.values.items() if not value.is_idle]
    if busy and not method.quantizes:
        raise UserError(
            f"quant.round=none leaves weights as they are, so {' and '.join(busy)} must be none too."
        )

    if method.owns("qronos") and not method["correct"].is_idle:
        raise UserError(
            f"quant.round={method['round'].name} solves for the weights anew, so nothing is left of "
            f"quant.correct={method['correct'].name}: set one of them to another value."
        )


def _check_foreign(experiment: Experiment) -> None:
    """Check what another tool makes, or has made: nothing of a method of ours is left to do."""
    quant, method = experiment.quant, experiment.method
    if not method.is_foreign:
        return
    busy = [f"quant.{s}={v.name}" for s, v in method.values.items() if s != "round" and not v.is_idle]
    busy += [] if method.activations.is_idle else ["quant.activations"]
    busy += [f"quant.{key}" for key in ("skip", "overrides") if getattr(quant, key)]
    if busy:
        raise UserError(
            f"quant.round={quant.round} takes weights as another tool quantizes them, so nothing is left "
            f"to do for {' and '.join(busy)}."
        )
    if quant.round == "checkpoint":
        _check_checkpoint(quant.checkpoint, experiment.model)
    if quant.round != "external":
        return
    if quant.external.driver is None:
        raise UserError(
            "quant.round=external needs quant.external.driver, the script that runs the tool; "
            "quant=external/llmcompressor-awq is a recipe, for example."
        )
    for requirement in quant.external.requirements:
        if "==" not in requirement and "@" not in requirement:
            raise UserError(
                f"quant.external.requirements has {requirement}, which names no version, so that the same "
                f"recipe would give other weights another day; pin it, as in {requirement}==1.0."
            )


def _check_checkpoint(place: CheckpointSection, model: ModelSection) -> None:
    """Check that a checkpoint is named in one way; without a parent its name still is the model's."""
    if (place.path is None) != (place.hub_id is None):
        return
    lack = "both are set" if place.path is not None else "neither is set"
    if place.path is None and model.path is not None:
        lack = f"model.path={model.path} has no model.parent beside it"
    elif place.path is None and model.hub_id is not None:
        lack = f"model.hub_id={model.hub_id} has no model.parent beside it"
    raise UserError(
        "quant=checkpoint evaluates a quantized checkpoint beside its full precision parent, so it "
        f"needs model.path=FOLDER or model.hub_id=NAME, with model.parent=MODEL, and {lack}."
    )


def _check_refinement(quant: QuantSection, method: Method) -> None:
    if method["refine"].is_idle:
        return
    busy = [s for s, v in method.values.items() if s not in ("rotate", "refine", "round") and not v.is_idle]
    busy += [] if method.rounds_to_nearest else ["round"]
    if busy:
        beside = " and ".join(f"quant.{stage}={method[stage].name}" for stage in busy)
        raise UserError(
            f"quant.refine={quant.refine} learns the scales, ranges and roundings of a block itself, so it "
            f"goes with quant.round=nearest and no other stage, not with {beside}."
        )
    if quant.search.loss == "module":
        raise UserError(
            "quant.search.loss=module is the objective of a search for scales, and "
            f"quant.refine={quant.refine} searches none: leave it out."
        )


def _check_adaptation(experiment: Experiment) -> None:
    names = experiment.evaluation.protocols
    adapts = experiment.quant.refinement.adapt_on is not None
    if adapts and experiment.method.owns("refinement") and len(names) != 1:
        shown = f"[{','.join(names)}] names {len(names)}" if names else "is empty"
        raise UserError(
            "quant.refinement.adapt_on=evaluation learns the last block on the text of the one protocol "
            f"that is scored, and evaluation.protocols {shown}: give one."
        )


def _check_grid(quant: QuantSection) -> None:
    if quant.symmetric_grid != "signed" and not quant.symmetric:
        raise UserError(
            f"quant.symmetric_grid={quant.symmetric_grid} is a way to spread symmetric codes; it needs "
            "symmetric=true."
        )


def _check_group_size(key: str, group_size: int) -> None:
    if group_size != -1 and group_size < 1:
        raise UserError(
            f"{key}={group_size} is not allowed: a positive number of channels, or -1 for one group "
            "per row."
        )


def _check_override(override: LinearOverride) -> None:
    where = f"quant.overrides '{override.pattern}'"
    if override.bits is None and override.group_size is None:
        raise UserError(f"{where} changes nothing: it needs bits, group_size or both.")
    if override.group_size is not None:
        _check_group_size(f"{where} group_size", override.group_size)


def _check_correction(correction: CorrectionSection) -> None:
    roles = correction.roles
    if isinstance(correction.strength, dict) and set(correction.strength) != set(roles):
        raise UserError(
            f"quant.correction.strength is given for {', '.join(correction.strength) or 'no role'}, "
            f"but quant.correction.roles lists {', '.join(roles) or 'none'}: name each of them once."
        )


def _check_left_to_rounding(quant: QuantSection, method: Method) -> None:
    """Refuse GPTAQ where a correction has made up for all that GPTAQ would: it would be GPTQ to the bit."""
    strengths = {quant.correction.strength_of(role) for role in get_args(RoleName)}
    if method["round"].name == "gptaq" and strengths == {1.0}:
        same = "foem" if quant.gptaq.beta else "gptq"
        raise UserError(
            f"quant.round=gptaq finds nothing to make up for: quant.correct={method['correct'].name} at "
            "quant.correction.strength=1 does so for every role. Take "
            f"quant.round={same}, which is the same then, or a strength below 1."
        )


def _check_held_out(correction: CorrectionSection, n_samples: int) -> None:
    if correction.strength == "search" and n_samples < 2:
        raise UserError(
            "quant.correction.strength=search holds out calibration windows to choose by, and "
            f"calibration.n_samples={n_samples} leaves none; it needs at least 2."
        )


def _check_rotation(quant: QuantSection) -> None:
    places = quant.rotation.places
    if quant.rotate != "none" and "R3" in places and quant.activations.key_bits is None:
        raise UserError(
            "quant.rotation.places has R3, which changes nothing while keys are left as they are: set "
            "quant.activations.kv_bits, or leave it out."
        )
    if quant.rotate != "none" and not places:
        raise UserError(f"quant.rotate={quant.rotate} changes nothing: quant.rotation.places is empty.")


def _check_activations(quant: QuantSection) -> None:
    """Refuse activations' grids that nothing here computes."""
    activations, method = quant.activations, method_of(quant)
    if activations.bmm and activations.bits is None:
        raise UserError(
            "quant.activations.bmm=true puts the operands of attention on the grid of linears' inputs, and "
            "quant.activations.bits is null; set it, or kv_bits for keys and values alone."
        )
    if method.activations.is_idle:
        return
    key, bits = next(
        (key, bits)
        for key, bits in (("bits", activations.bits), ("kv_bits", activations.kv_bits))
        if bits is not None
    )
    start = f"quant.activations.{key}={bits}"
    if not method.quantizes:
        raise UserError(f"{start} needs quantized weights, but quant.round=none leaves them as they are.")
    if not activations.targets:
        raise UserError(f"{start} changes nothing: quant.activations.targets is empty.")
    if activations.dynamic != (activations.granularity == "token"):
        raise UserError(
            f"quant.activations.granularity={activations.granularity} with "
            f"dynamic={str(activations.dynamic).lower()} is not allowed: a token's range is taken when "
            "it comes (token, dynamic=true), and one range for a tensor beforehand (tensor, "
            "dynamic=false), so that no score depends on what lies beside a request."
        )
    if not activations.seen_by_rounding:
        return
    if not method.reads & {Reads.HESSIAN, Reads.BOTH_STREAMS, Reads.BLOCKS}:
        raise UserError(
            f"quant.activations.seen_by_rounding=true changes nothing: quant.round={quant.round} with "
            f"quant.correct={quant.correct} reads no inputs of quantized linears."
        )
    if not activations.dynamic:
        raise UserError(
            "quant.activations.seen_by_rounding=true needs granularity=token: a static range is known "
            "only when a linear has been quantized."
        )


def _paths_and_tuples(value: Any) -> Any:
    """Give strict pydantic the types it wants where YAML has none: tuples for lists, paths for texts."""
    if isinstance(value, Mapping):
        result = {k: _paths_and_tuples(v) for k, v in value.items()}
        for key in ("runs", "reports", "presearch", "wikitext2_path"):
            if isinstance(result.get(key), str):
                result[key] = Path(result[key])
        if isinstance(result.get("gamma"), tuple):  # the candidates of a presearch
            result["gamma"] = tuple(_as_float(v) for v in result["gamma"])
        if isinstance(result.get("mixture"), dict):
            result["mixture"] = {str(k): _as_float(v) for k, v in result["mixture"].items()}
        for key in (
            "gamma",
            "alpha",
            "clip_ratio",
            "strength",
            "residual_strength",
            "damping",
            "beta",
            "original",
            "p",
            "max_shrink",
            "clip_max_shrink",
            "skew",
            "scale_rate",
            "clip_rate",
            "offset_rate",
            "length_power",
            "rarity",
            "noise_rate",
            "keep",
            "max_gigabytes",
            "memory_limit_gigabytes",
            *get_args(RoleName),
        ):
            if key in result:
                result[key] = _as_float(result[key])
        return result
    if isinstance(value, list):
        return tuple(_paths_and_tuples(v) for v in value)
    return value


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sentence(error: ErrorDetails) -> str:
    """Return one sentence for a mistake that pydantic found."""
    key = _readable_key([str(part) for part in error["loc"] if part not in _NOT_KEYS])
    value = spelled(error["input"])
    if error["type"] == "extra_forbidden":
        allowed = _known_keys([str(part) for part in error["loc"][:-1]])
        hint = did_you_mean(str(error["loc"][-1]), allowed)
        return f"Unknown key {key}.{hint} Keys there: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"{key} is missing."
    if error["type"] == "literal_error":
        also = "'auto', " if key in _RESOLVED_BEFORE else ""
        also = "a number or " if "word" in error["loc"] else also
        expected = also + error["ctx"]["expected"]
        allowed = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
        return f"{key}={value} is not allowed: it is {expected}.{did_you_mean(str(value), allowed)}"
    if error["type"] == "string_pattern_mismatch":
        return (
            f"{key}={value} is not allowed: a name of at most 80 letters, digits and . _ + - that begins "
            "with a letter or digit."
        )
    if "error" in error.get("ctx", {}):  # what a check of ours raised, in words of its own
        return f"{key}={value}: {error['ctx']['error']}."
    return f"{key}={value} is not allowed: {_wanted(error, key, value)}."


def _wanted(error: ErrorDetails, key: str, value: str) -> str:
    """Say what a value should be, in the command line's spelling."""
    kind, given = error["type"], error["input"]
    if kind == "tuple_type":
        return f"it is a list, in brackets, as in {key}=[{'' if given is None else value}]"
    if kind in ("dict_type", "model_type"):
        return f"it is a mapping, in braces, as in {key}={{NAME: VALUE}}"
    if isinstance(given, tuple) and not key.rpartition(".")[2].isdigit():
        values = value.strip("[]")
        return f"it is one value and no list; -m {key}={values} runs a cell for each"
    if kind in ("string_type", "is_instance_of"):
        return "it should be a text" + ("" if given is None else f'; quote it, as in \\"{value}\\"')
    if kind == "bool_type":
        return "it should be true or false"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    return f"it should be {message}"


def spelled(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelled, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _readable_key(location: list[str]) -> str:
    """Name the knob that the user turned, where a group's field only repeats it."""
    short = {f"quant.{k}": k for k in ("bits", "group_size", "symmetric")}
    short |= {"quant.preview.window": "window", "quant.preview.gamma": "gamma"}
    short |= {"calibration.seed": "seed", "calibration.allow_repeat": "allow_repeat"}
    key = ".".join(location)
    return short.get(key, key)


def _known_keys(location: list[str]) -> list[str]:
    model: type[BaseModel] = Experiment
    for part in location:
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation
        model = next(
            (a for a in (annotation, *getattr(annotation, "__args__", ())) if _is_section(a)), model
        )
    return list(model.model_fields)


def _is_section(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
