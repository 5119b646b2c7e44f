"""The verification of an exported folder, in a process that knows nothing of faqbench's models.

    python -m faqbench.export.plain FOLDER RESULT

The files' packed weights are unpacked by `faqbench.layouts` and compared. Then the folder is loaded by
transformers as any user would load it, and weights, logits and losses are compared as they are there. Where
transformers cannot (GPTQ and AWQ need gptqmodel), its model gets the unpacked weights, and the result says
so. What was found is written to RESULT as JSON; `verify.py` judges it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from faqbench.layouts import PARTS, decode, layout_of

_NOT_COUNTED = ("g_idx", "weight_shape")  # what follows from the rest
_LIBRARIES = {"gptq": "gptqmodel", "awq": "gptqmodel"}


@torch.inference_mode()
def examine(folder: Path) -> dict[str, Any]:
    """Load a folder and return what differs from its evidence."""
    facts = json.loads((folder / "faqbench" / "facts.json").read_text())
    with safe_open(folder / "faqbench" / "evidence.safetensors", framework="pt") as evidence:
        stored, n_bytes = _stored(folder, facts, evidence)
        model, loader = _load(folder, getattr(torch, facts["dtype"]))
        model.eval().requires_grad_(False)
        kinds: dict[str, list[str]] = {"logits": [], "nll": []}
        for name in evidence.keys():  # noqa: SIM118 - not a mapping
            kinds.get(name.partition("/")[0], []).append(name.partition("/")[2])
        logits = {
            name: _logits_difference(
                model, evidence.get_tensor(f"tokens/{name}"), evidence.get_tensor(f"logits/{name}")
            )
            for name in kinds["logits"]
        }
        perplexities = {
            name: _perplexities(
                model, evidence.get_tensor(f"tokens/{name}"), evidence.get_tensor(f"nll/{name}")
            )
            for name in kinds["nll"]
        }
        loaded = {
            name: _difference(model.get_submodule(name).weight, name, facts, evidence)
            for name in facts["linears"]
        }
    return {
        "loader": loader,
        "stored": stored,
        "loaded": loaded,
        "logits": logits,
        "perplexities": perplexities,
        "n_bytes": n_bytes,
    }


def _stored(folder: Path, facts: Mapping[str, Any], evidence: Any) -> tuple[dict[str, float], int]:
    """Return how far what the files hold is from what was measured, and the bytes of their tensors."""
    if (folder / "model.gguf").is_file():
        from gguf import GGUFReader

        tensors = GGUFReader(folder / "model.gguf").tensors
        return {}, sum(int(tensor.n_bytes) for tensor in tensors)
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    differences, n_bytes = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            counted = [n for n in list(file.keys()) if not n.endswith(_NOT_COUNTED)]
            n_bytes += sum(file.get_tensor(name).nbytes for name in counted)
    for name, tensor in _read(folder, settings):
        linear = name.removesuffix(".weight")
        if linear in facts["linears"]:
            differences[linear] = _difference(tensor, linear, facts, evidence)
    return differences, n_bytes


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """Return the model, and the words for who loaded it."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import __version__ as version

    if (folder / "model.gguf").is_file():
        # The file leaves out what llama.cpp takes for granted of a family, and so do readers of it alone.
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", config=config, dtype=dtype
        )
        return model, f"transformers {version} from model.gguf"
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    why = _why_not_plain(settings)
    if why is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), f"transformers {version}"
    model = _assembled(folder, settings, dtype)
    return model, f"transformers {version}, with weights unpacked by faqbench.layouts ({why})"


def _why_not_plain(settings: Mapping[str, Any]) -> str | None:
    """Say why transformers cannot load a layout by itself here, or return None when it can."""
    library = _LIBRARIES.get(settings["quant_method"])
    if library is not None and find_spec(library) is None:
        return f"{library} is not installed"
    if settings.get("dequantize") and len(settings["config_groups"]) > 1:
        return "its own loader takes all zero points to be of one width"
    return None


def _assembled(folder: Path, settings: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Return transformers' own model with the numbers of packed weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lack = set(dict(model.named_parameters()))
    for name, tensor in _read(folder, settings):
        model.get_parameter(name).copy_(tensor)
        lack.discard(name)
    if lack:
        raise ValueError(f"the files lack {sorted(lack)[0]} and {len(lack) - 1} more")
    return model


def _read(folder: Path, settings: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of all shards by name, packed ones decoded."""
    layout = layout_of(settings)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                module, _, kind = name.rpartition(".")
                if kind == PARTS[layout][0]:
                    parts = {
                        part: file.get_tensor(f"{module}.{part}")
                        for part in PARTS[layout]
                        if f"{module}.{part}" in names
                    }
                    yield f"{module}.weight", decode(layout, parts, settings)
                elif kind not in PARTS[layout]:
                    yield name, file.get_tensor(name)


def _logits_difference(model: Any, tokens: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest of them."""
    logits = model(input_ids=tokens.long().unsqueeze(0), use_cache=False).logits
    last_logits = logits[0, -len(expected) :].float()
    return float((last_logits - expected).abs().max() / expected.abs().max())


def _perplexities(model: Any, tokens: Tensor, losses: Tensor) -> dict[str, float]:
    """Return the perplexity of some windows as it is now and as it was measured."""
    perplexities = []
    for window in tokens.long():
        logits = model(input_ids=window.unsqueeze(0), use_cache=False).logits[0, :-1].float()
        perplexities.append(torch.nn.functional.cross_entropy(logits, window[1:]).double())
    return {"found": float(torch.stack(perplexities).mean().exp()), "measured": float(losses.mean().exp())}


def _difference(weight: Tensor, name: str, facts: Mapping[str, Any], evidence: Any) -> float:
    """Return 0 for a weight equal to the bit, else the difference that the probe sees, relative to it."""
    weight = weight.float().contiguous()
    if hashlib.sha256(weight.numpy().tobytes()).hexdigest() == facts["linears"][name]:
        return 0.0
    signs = evidence.get_tensor(f"probe/{weight.shape[1]}")
    probed = evidence.get_tensor(f"probed/{name}")
    return float((weight @ signs.float() - probed).abs().max() / probed.abs().max())


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(examine(Path(sys.argv[1]))))
