"""Toy run folders with realistic numbers, written through the same function as real ones."""

import zlib

import numpy as np
import pandas as pd
import pytest

from faqbench.records import (
    SCHEMA_VERSION,
    Gate,
    Metric,
    RunData,
    RunRecord,
    StageTiming,
    write_run,
)
from faqbench.statistics import accuracy_with_stderr, perplexity_with_stderr

PROTOCOL = "heldout-wiki-512"
TASKS = ("arc_challenge_validation", "arc_easy_validation", "boolq_validation", "piqa_validation")
STAGES = {
    "fp": ("none", "none", "none", "none"),
    "rtn": ("none", "none", "none", "nearest"),
    "awq": ("awq", "search", "none", "nearest"),
    "faq": ("faq", "search", "none", "nearest"),
    "gptq": ("none", "none", "none", "gptq"),
}
# Mean loss above full precision at 3 bits, and accuracy.
DAMAGE = {"fp": 0.0, "rtn": 1.17, "awq": 0.69, "faq": 0.67, "gptq": 0.75}
SKILL = {"fp": 0.58, "rtn": 0.44, "awq": 0.51, "faq": 0.52, "gptq": 0.50}
NOTES = (
    "The packaged weights already sit on a 4-bit grid of 32-channel blocks; read 4-bit results at "
    "group sizes up to 32 with care."
)


def config_of(method, bits, seed, model="smollm2-135m", **changes):
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
        "scenario": {"name": "matched", "domain": None, "n_samples": None},
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
            config[section] = {**config[section], name: value}
        else:
            config[section] = value
    return config


def measure(method, bits, seed, n_windows, n_items):
    """Losses and items that share their texts' and items' difficulty between all methods."""
    shared, own = (
        np.random.default_rng(0),
        np.random.default_rng([seed, bits, zlib.crc32(method.encode())]),
    )
    shift = DAMAGE.get(method, 0.7) * (1.0 if bits <= 3 else 0.13)
    text = shared.normal(3.37, 0.35, (n_windows, 1))
    tokens = text + shared.exponential(1.0, (n_windows, 63)) - 1.0
    drift = shift * (1 + own.normal(0, 0.04, (n_windows, 1))) + own.normal(0, 0.02, tokens.shape)
    nll = np.maximum(tokens + (drift if method != "fp" else 0.0), 0.01).astype(np.float16)
    items = {}
    for task in TASKS:
        difficulty = shared.random(n_items)
        flipped = own.random(n_items) < (0.0 if method == "fp" else 0.08)
        skill = SKILL.get(method, 0.5) + (0.05 if bits > 3 and method != "fp" else 0)
        items[task] = np.where(flipped, own.random(n_items), difficulty) < skill
    return nll, items


def layers_of(method, bits):
    if method == "fp":
        return pd.DataFrame()
    own = np.random.default_rng(zlib.crc32(method.encode()))
    rows = [
        {
            "block": block,
            "role": role,
            "linear": f"model.layers.{block}.{role}",
            "relative_error": DAMAGE.get(method, 0.7)
            * 0.08
            * (1 + block / 12)
            * own.uniform(0.8, 1.2)
            / bits,
            "alpha": 0.5,
            "seconds": 0.1,
        }
        for block in range(30)
        for role in ("qkv", "o", "gate_up", "down")
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def make_run():
    """Return a function that writes one toy run and returns its record."""

    def make(
        runs,
        method,
        bits=3,
        seed=0,
        *,
        run_id=None,
        model="smollm2-135m",
        n_windows=40,
        n_items=100,
        protocol_print="p" * 64,
        status="finished",
        error=None,
        gates=None,
        warnings=(),
        **changes,
    ):
        config = config_of(method, bits, seed, model, **changes)
        nll, items = measure(method, bits, seed, n_windows, n_items)
        value, stderr = perplexity_with_stderr(nll)
        metrics = [
            Metric(
                task=PROTOCOL,
                name="perplexity",
                value=value,
                stderr=stderr,
                n=nll.size,
                unit="perplexity",
                higher_is_better=False,
            )
        ]
        for task, correct in items.items():
            acc, acc_stderr = accuracy_with_stderr(correct)
            metrics += [
                Metric(
                    task=task,
                    name=name,
                    value=acc,
                    stderr=acc_stderr,
                    n=n_items,
                    unit="ratio",
                    higher_is_better=True,
                )
                for name in ("acc", "acc_norm")
            ]
        finished = status == "finished"
        quantized = method != "fp"
        calibrated = method not in ("fp", "rtn")
        stages = {"load": StageTiming(seconds=1.2, cached=method != "fp")}
        if calibrated:
            stages["observe"] = StageTiming(
                seconds=41.0 if method == "awq" else 0.2, cached=method != "awq"
            )
        if quantized:
            stages["quantize"] = StageTiming(seconds=22.0 if calibrated else 1.1, cached=False)
        stages["evaluate"] = StageTiming(seconds=64.0, cached=False)
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            run_id=run_id or f"{model}-{method}-w{bits}-g64-s{seed}-0a1b2c",
            status=status,
            error=error,
            config=config,
            environment={
                "python": "3.11.9",
                "torch": "2.11.0",
                "git_commit": "1f0c9a2",
                "cpu": "2 cores",
            },
            fingerprints={
                f"protocol/{PROTOCOL}": protocol_print,
                "weights": "w" * 64,
                **{f"task/{task}": "t" * 64 for task in TASKS},
            },
            stages=stages,
            metrics=tuple(metrics) if finished else (),
            bits_per_weight=bits + 0.375 if quantized else None,
            checkpoint_bytes=52_000_000 if quantized else None,
            peak_memory_bytes=1_830_000_000,
            gates=gates
            if gates is not None
            else (
                Gate(name="finite", passed=True, detail="no NaN or inf"),
                Gate(name="all_linears_quantized", passed=True, detail="210 of 210"),
            ),
            warnings=warnings,
            skipped_scales=("o: grouped-query attention, v and o differ in shape",)
            if calibrated
            else (),
            started="2026-11-22T10:00:00Z",
            seconds=sum(stage.seconds for stage in stages.values()),
        )
        if not finished:
            nll, items = nll[:0], {}
        table = pd.DataFrame(
            [
                {"task": task, "item": i, "metric": metric, "value": float(v)}
                for task, correct in items.items()
                for metric in ("acc", "acc_norm")
                for i, v in enumerate(correct)
            ]
        )
        data = RunData(
            record=record,
            items=table,
            tokens={PROTOCOL: nll} if finished else {},
            layers=layers_of(method, bits) if finished else pd.DataFrame(),
        )
        write_run(runs, data, "bits: 3\n")
        return record

    return make


@pytest.fixture(scope="session")
def quickstart_runs(tmp_path_factory, make_run):
    """The runs of the quickstart: full precision, RTN, AWQ and FAQ at 3 bits, one draw each."""
    runs = tmp_path_factory.mktemp("quickstart") / "runs"
    for method in ("fp", "rtn", "awq", "faq"):
        make_run(runs, method)
    return runs
