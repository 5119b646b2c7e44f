"""Intel's auto-round: signed gradient descent on each block's rounding, written in GPTQ's layout.

Options: iters (200 in the paper), batch_size, lr (null is 1 / iters), windows (how many of the calibration
set's, from its start), and whatever else AutoRound takes.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(request):
    """Quantize a model as a request says."""
    options = dict(request["options"])
    tokens = load_file(request["tokens"])["tokens"][: options.pop("windows", None)]
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    tuned = AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(request["model"]),
        scheme="W4A16",
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["symmetric"],
        dataset=[{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens],
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        seed=request["seed"],
        device_map="cpu",
        enable_torch_compile=False,
        **options,
    )
    into = Path(request["into"])
    tuned.quantize_and_save(str(into), format="auto_gptq")
    (config,) = into.rglob("config.json")  # in a folder that it names itself
    for path in list(config.parent.iterdir()) if config.parent != into else []:
        shutil.move(path, into / path.name)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
