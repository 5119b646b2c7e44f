"""From a run to a checkpoint that other tools load, and back."""

import json

import torch

from faqbench.cli import main
from faqbench.quantization.checkpoint import linear_names, read_linear


def test_what_is_measured_has_the_scales_that_are_stored(workplace):
    """Codes from the cache give the same numbers, though v's and up's scales are rounded twice."""
    cell = [
        "quant=awq",
        "quant.scale_dtype=bfloat16",
        "quant.search.gqa_scale=repeat",
        *workplace.cell,
    ]
    assert main(cell) == 0
    (path,) = workplace.runs.glob("*/record.json")
    first = json.loads(path.read_text())
    (entry,) = [
        u["entry"] for u in first["extra"]["stage_keys"] if u["entry"].startswith("quantized/")
    ]
    folder = workplace.root / "cache" / "stages" / entry
    for name in linear_names(folder):
        linear = read_linear(folder, name, torch.device("cpu"))
        assert torch.equal(linear.scale, linear.scale.bfloat16().float())
        assert linear.grid.scale_dtype == "bfloat16"
        is_read_scaled = name.endswith(("v_proj", "up_proj"))
        assert (linear.output_scale is not None) == is_read_scaled
    for stage in ("perplexity", "weights_check"):
        for made in (workplace.root / "cache" / "stages" / stage).glob("*/manifest.json"):
            made.unlink()
    assert main([*cell, "rerun=true"]) == 0
    again = json.loads(path.read_text())
    assert [m["value"] for m in again["metrics"]] == [m["value"] for m in first["metrics"]]
    assert not again["stages"]["evaluate"]["cached"] and again["stages"]["quantize"]["cached"]
