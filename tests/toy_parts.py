"""What the stages of a toy run leave behind: layers, traces, calibration and evaluation notes."""

import zlib

import numpy as np
import pandas as pd

PROTOCOL = "heldout-wiki-512"
TASKS = ("arc_challenge_validation", "arc_easy_validation", "boolq_validation", "piqa_validation")
STAGES = {
    "fp": ("none", "none", "none", "none"),
    "rtn": ("none", "none", "none", "nearest"),
    "awq": ("awq", "search", "none", "nearest"),
    "faq": ("faq", "search", "none", "nearest"),
    "gptq": ("none", "none", "none", "gptq"),
    "qep": ("none", "none", "qep", "nearest"),
    "qep-awq": ("awq", "search", "qep", "nearest"),
    "qep-faq": ("faq", "search", "qep", "nearest"),
}
# Mean loss above full precision at 3 bits.
DAMAGE = {"fp": 0.0, "rtn": 1.17, "awq": 0.69, "faq": 0.67, "gptq": 0.75, "qep": 0.8}
# Scenarios and how far their texts are from the reference's.
SCENARIOS = {"matched": 0.02, "math-only": 0.31, "code-only": 0.42, "random-tokens": 0.83}
LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
N_BLOCKS = 30


def layers_of(method, bits):
    if method == "fp":
        return pd.DataFrame()
    own = np.random.default_rng(zlib.crc32(method.encode()))
    scaled = STAGES.get(method, STAGES["awq"])[0] != "none"
    rows = []
    for block in range(N_BLOCKS):
        for role, linears in LINEARS.items():
            alpha = round(float(own.integers(2, 15)) / 20, 2) if scaled and role != "o" else None
            for linear in linears:
                error = DAMAGE.get(method, 0.55) * 0.08 * (1 + block / 12) * own.uniform(0.8, 1.2)
                rows.append(
                    {
                        "block": block,
                        "role": role,
                        "linear": linear,
                        "bits": bits,
                        "alpha": alpha,
                        "clipped_frac": 0.01,
                        "scale_range": 1.0 if alpha is None else float(np.exp(8 * alpha)),
                        "nearest_error": error * 1.4 / bits,
                        "relative_error": error * (3 if role == "down" else 1) / bits,
                        "seconds": 0.1,
                    }
                )
    return pd.DataFrame(rows)


def blocks_of(method, bits):
    own = np.random.default_rng(zlib.crc32(method.encode()))
    blocks, total = [], 0.0
    for block in range(N_BLOCKS):
        local = DAMAGE.get(method, 0.55) * 0.02 * own.uniform(0.7, 1.3) * 2.0 ** (3 - bits)
        total = 0.93 * total + local
        blocks.append(
            {"block": block, "local_error": local, "relative_error": total, "cosine": 1 - total / 2}
        )
    return blocks


def calibration_of(method, scenario, seed):
    """What the calibration stage notes down, the bias distance included."""
    own = np.random.default_rng([seed, zlib.crc32(scenario.encode())])
    distance = SCENARIOS[scenario] * float(own.uniform(0.97, 1.03))
    shift = {role: round(distance * f, 4) for role, f in zip(LINEARS, (0.9, 1.4, 1.0, 1.8), strict=True)}
    return {
        "scenario": scenario,
        "domain": "wiki",
        "n_samples": 32,
        "seq_len": 512,
        "seed": seed,
        "n_texts_used": 61,
        "sources": ["squad"],
        "window_start": "cut",
        "bias_distance": {"reference": "wiki", "token_js": round(distance, 4), "activation_shift": shift},
        "overlap": {PROTOCOL: 0},
    }


def evaluation_of(seed, n_windows, n_items, n_truncated=0):
    """What the evaluation stages note down."""
    own = np.random.default_rng(seed)
    notes = {"verified": True, "version": 1, "peak_memory_bytes": 1_200_000_000}
    protocol = {"n_windows": n_windows, "seq_len": 512, "seconds": round(own.uniform(5, 9), 3)}
    seeds = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
    config = {"add_bos": False, "limit": n_items, "n_truncated": n_truncated, "seeds": seeds}
    config |= {"n_requests": 4 * n_items}
    task = {"version": "1.0", "n_documents": n_items, "config": config}
    return {PROTOCOL: protocol | notes} | {
        name: task | {"seconds": round(own.uniform(5, 9), 3)} for name in TASKS
    }


# A llama of a second: what `random_model` takes.
LLAMA_SHAPE = {
    "model_type": "llama",
    "seed": 0,
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
