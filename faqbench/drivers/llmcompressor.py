"""vLLM's llm-compressor: AWQ, GPTQ, or SmoothQuant before GPTQ, written as compressed-tensors.

Options: algorithm (awq, gptq, smoothquant-gptq), and those of the modifier of that name.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main(request):
    """Quantize a model as a request says."""
    tokens = load_file(request["tokens"])["tokens"]
    if not torch.cuda.is_available():
        # Its AWQ pins memory all the same, which torch refuses there; no value depends on it.
        IntermediatesCache.pin_memory = lambda *_: None
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    oneshot(
        model=model,
        tokenizer=request["model"],
        dataset=Dataset.from_list(rows),
        recipe=modifiers(request),
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    model.save_pretrained(request["into"], save_compressed=True)


def modifiers(request):
    """Return the recipe of an algorithm on the request's grid."""
    options = dict(request["options"])
    algorithm = options.pop("algorithm")
    per_row = request["group_size"] == -1
    weights = {
        "num_bits": request["bits"],
        "type": "int",
        "symmetric": request["symmetric"],
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else request["group_size"],
    }
    grid = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if algorithm == "awq":
        return [AWQModifier(**options), QuantizationModifier(**grid)]
    if algorithm == "smoothquant-gptq":
        strength = options.pop("smoothing_strength")
        smooth = SmoothQuantModifier(smoothing_strength=strength)
        return [smooth, GPTQModifier(**options, **grid)]
    if algorithm == "gptq":
        return [GPTQModifier(**options, **grid)]
    raise SystemExit(f"algorithm={algorithm} is not known: awq, gptq or smoothquant-gptq")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
