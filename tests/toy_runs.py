"""Toy run folders with realistic numbers, written through the same function as real ones."""

import zlib

import numpy as np
import pandas as pd
from toy_parts import (
    DAMAGE,
    PROTOCOL,
    SCENARIOS,
    STAGES,
    TASKS,
    blocks_of,
    calibration_of,
    evaluation_of,
    layers_of,
)

from faqbench.records import SCHEMA_VERSION, Gate, Metric, RunData, RunRecord, StageTiming, write_run
from faqbench.statistics import accuracy_with_stderr, perplexity_with_stderr

# Accuracy at 3 bits.
SKILL = {"fp": 0.58, "rtn": 0.44, "awq": 0.51, "faq": 0.52, "gptq": 0.50}
NOTES = (
    "The packaged weights already sit on a 4-bit grid of 32-channel blocks; read 4-bit results at "
    "group sizes up to 32 with care."
)


def config_of(method, bits, seed, model="smollm2-135m", place="matched", **changes):
    scale, clip, correct, rounding = STAGES.get(method, STAGES["awq"])
    config = {
        "model": {"name": model, "source": "packaged", "group_size": 64, "notes": NOTES},
        "quant": {
            "name": method,
            "scale": scale,
            "clip": clip,
            "correct": correct,
            "round": rounding,
            "bits": bits,
            "group_size": 64,
            "symmetric": False,
            "search": {"n_grid": 20, "loss": "gram"},
            "preview": {"window": 3, "gamma": 0.85, "roles": "residual"},
            "gptq": {"damping": 0.01},
            "correction": {"strength": 0.5},
        },
        "calibration": {"domain": "wiki", "n_samples": 32, "seq_len": 512, "seed": seed},
        "scenario": {
            "name": place,
            "domain": None if place == "matched" else place.partition("-")[0],
            "n_samples": None,
        },
        "evaluation": {
            "name": "quick",
            "protocols": [PROTOCOL],
            "tasks": list(TASKS),
            "n_windows": 40,
            "n_documents": 100,
            "num_fewshot": 0,
            "add_bos": False,
        },
        "paths": {"runs": "/home/somebody/runs", "reports": "/home/somebody/reports"},
        "bits": bits,
        "group_size": 64,
        "symmetric": False,
        "window": 3,
        "gamma": 0.85,
        "seed": seed,
        "limit": None,
        "device": "cpu",
        "dtype": "bfloat16",
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            config[section] = {**config.get(section, {}), name: value}
        else:
            config[section] = value
    return config


def measure(method, bits, seed, n_windows, n_items, scenario="matched", added_loss=0.0):
    """Losses and items that share their texts' and items' difficulty between all methods."""
    shared = np.random.default_rng(0)
    own = np.random.default_rng([seed, bits, zlib.crc32(f"{method}{scenario}".encode())])
    strain = 1 + SCENARIOS[scenario] * (0.25 if "faq" in method else 0.4)
    shift = DAMAGE.get(method, 0.55) * strain * {2: 3.0, 3: 1.0}.get(bits, 0.13)
    text = shared.normal(3.37, 0.35, (n_windows, 1))
    tokens = text + shared.exponential(1.0, (n_windows, 63)) - 1.0
    drift = shift * (1 + own.normal(0, 0.04, (n_windows, 1))) + own.normal(0, 0.02, tokens.shape)
    drift = drift if method != "fp" else 0.0
    nll = np.maximum(tokens + drift, 0.01).astype(np.float16) + np.float32(added_loss)
    items = {}
    for task in TASKS:
        difficulty = shared.random(n_items)
        flipped = own.random(n_items) < (0.0 if method == "fp" else 0.08)
        skill = SKILL.get(method, 0.5) + (0.05 if bits > 3 and method != "fp" else 0)
        items[task] = np.where(flipped, own.random(n_items), difficulty) < skill
    return nll, items


def fidelity(nll, method, bits, seed):
    """Divergence from full precision and agreement with it, per token."""
    own = np.random.default_rng([seed, bits, zlib.crc32(method.encode()), 7])
    shift = DAMAGE.get(method, 0.55) * (1.0 if bits <= 3 else 0.13)
    kl = own.exponential(0.6 * shift, nll.shape).astype(np.float32)
    agrees = (own.random(nll.shape) > 0.35 * min(shift, 1.5)).astype(np.uint8)
    return {f"{PROTOCOL}.kl": kl, f"{PROTOCOL}.agrees": agrees}


def metrics_of(nll, items, extra_tokens):
    value, stderr = perplexity_with_stderr(nll)
    metrics = [_metric(PROTOCOL, "perplexity", value, stderr, nll.size, "perplexity", False)]
    for name, unit, higher in (("kl", "nats", False), ("agrees", "ratio", True)):
        array = extra_tokens.get(f"{PROTOCOL}.{name}")
        if array is not None:
            windows = array.mean(axis=1, dtype=np.float64)
            stderr = float(windows.std(ddof=1)) / len(windows) ** 0.5
            full = {"kl": "kl_divergence", "agrees": "top1_agreement"}[name]
            mean = float(windows.mean())
            metrics.append(_metric(PROTOCOL, full, mean, stderr, nll.size, unit, higher))
    for task, correct in items.items():
        acc, acc_stderr = accuracy_with_stderr(correct)
        metrics += [
            _metric(task, name, acc, acc_stderr, len(correct), "ratio", True)
            for name in ("acc", "acc_norm")
        ]
    return tuple(metrics)


def _metric(task, name, value, stderr, n, unit, higher):
    return Metric(task=task, name=name, value=value, stderr=stderr, n=n, unit=unit, higher_is_better=higher)


def stages_of(method):
    calibrated = method not in ("fp", "rtn")
    stages = {"load": StageTiming(seconds=1.2, cached=method != "fp")}
    if calibrated:
        seconds = 41.0 if method == "awq" else 0.2
        stages["statistics"] = StageTiming(seconds=seconds, cached=method != "awq")
    if method != "fp":
        stages["quantize"] = StageTiming(seconds=22.0 if calibrated else 1.1, cached=False)
    stages["evaluate"] = StageTiming(seconds=64.0, cached=False)
    return stages


def write_toy_run(
    runs,
    method,
    bits=3,
    seed=0,
    *,
    run_id=None,
    model="smollm2-135m",
    scenario="matched",
    n_windows=40,
    n_items=100,
    protocol_print="p" * 64,
    weights_print="w" * 64,
    more_prints=None,
    added_loss=0.0,
    n_truncated=0,
    status="finished",
    error=None,
    gates=None,
    warnings=(),
    **changes,
):
    """Write one toy run and return its record; `section__key=value` changes its config."""
    if isinstance(scenario, dict):  # a whole section, whose texts are the matched ones
        changes, scenario = {**changes, "scenario": scenario}, "matched"
    finished, quantized = status == "finished", method != "fp"
    calibrated = method not in ("fp", "rtn")
    nll, items = measure(method, bits, seed, n_windows, n_items, scenario, added_loss)
    tokens = {PROTOCOL: nll} | (fidelity(nll, method, bits, seed) if quantized else {})
    stages = stages_of(method)
    extra = {"evaluation": evaluation_of(seed, n_windows, n_items, n_truncated)} if finished else {}
    if quantized and finished:
        extra["blocks"] = blocks_of(method, bits)
    if calibrated and finished:
        extra["calibration"] = calibration_of(method, scenario, seed)
    place = "" if scenario == "matched" else f"-{scenario}"
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run_id or f"{model}-{method}-w{bits}-g64-s{seed}{place}-0a1b2c",
        status=status,
        error=error,
        config=config_of(method, bits, seed, model, scenario, **changes),
        environment={"python": "3.11.9", "torch": "2.11.0", "git_commit": "1f0c9a2", "cpu": "2 cores"},
        fingerprints={
            f"protocol/{PROTOCOL}": protocol_print,
            "weights": weights_print,
            **{f"task/{task}": "t" * 64 for task in TASKS},
            **(more_prints or {}),
        },
        stages=stages,
        metrics=metrics_of(nll, items, tokens) if finished else (),
        bits_per_weight=bits + 0.375 if quantized else None,
        checkpoint_bytes=52_000_000 if quantized else None,
        peak_memory_bytes=1_830_000_000 + 210_000_000 * calibrated,
        gates=gates
        if gates is not None
        else (
            Gate(name="finite", passed=True, detail="no NaN or inf"),
            Gate(name="all_linears_quantized", passed=True, detail="210 of 210"),
        ),
        warnings=warnings,
        skipped_scales=("o: grouped-query attention, v and o differ in shape",) if calibrated else (),
        started="2026-11-22T10:00:00Z",
        seconds=sum(stage.seconds for stage in stages.values()),
        extra=extra,
    )
    table = pd.DataFrame(
        [
            {"task": task, "item": i, "metric": metric, "value": float(v)}
            for task, correct in (items if finished else {}).items()
            for metric in ("acc", "acc_norm")
            for i, v in enumerate(correct)
        ]
    )
    data = RunData(
        record=record,
        items=table,
        tokens=tokens if finished else {},
        layers=layers_of(method, bits) if finished else pd.DataFrame(),
    )
    write_run(runs, data, "bits: 3\n")
    return record
