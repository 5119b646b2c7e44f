"""ModelCloud's GPTQModel: GPTQ, written in its own layout. It wants an accelerator for larger models.

Options: those of QuantizeConfig, such as desc_act and damp_percent.
"""

import json
import os
import sys
from pathlib import Path

# Of two cores or fewer it takes one worker, where its loading asks for two, and it does not start.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, ((os.cpu_count() or 1) + 1) // 2)))

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file


def main(request):
    """Quantize a model as a request says."""
    tokens = load_file(request["tokens"])["tokens"]
    config = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["symmetric"],
        **request["options"],
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(request["model"], config, device=device)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    model.quantize(rows, batch_size=1)
    model.save(request["into"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
