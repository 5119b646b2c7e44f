"""GGUF, which llama.cpp loads: one file of weights, configuration and tokenizer, by the `gguf` package.

A type of GGUF holds a grid exactly where its blocks of 32 values have the grid's numbers:

    Q4_0   symmetric, 4 bits    d (float16), q + 8                   value d (q - 8)
    Q8_0   symmetric, 8 bits    d (float16), q                       value d q
    Q4_1   asymmetric, 4 bits   d and m (float16), q                 value d q + m, with m = -d zero

m is a product, which float16 holds only where it has 11 significant bits: where some group's has more, the
run is refused, since other numbers would be deployed than were measured.

Names are llama.cpp's; Llama's rows of q and k are in its order of rotary pairs; Gemma's norms are stored
as the 1 + w that they multiply by. Tokenizers are byte-level BPE; sentencepiece ones need scores that a
`tokenizer.json` does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faqbench.config import UserError
from faqbench.export.fold import Part, StoredModel
from faqbench.quantization import QuantizedLinear
from faqbench.stages import library_version

_BLOCK = 32
_ARCHITECTURES = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma3_text": "GEMMA3",
    "phi3": "PHI3",
}
# What llama.cpp calls the ways to cut a text before BPE, by the regular expression; "" is GPT-2's own.
_CUTS = {
    "": "gpt-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
_TYPES = {(4, True): "Q4_0", (8, True): "Q8_0", (4, False): "Q4_1"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType


def writer() -> str:
    """Return the package that writes, with its version."""
    return f"gguf {library_version('gguf')}"


def check(model: StoredModel) -> None:
    """Refuse a model that no type holds exactly, or whose family or tokenizer is not known here.

    Raises:
        UserError: with the reason, and the nearest configuration that fits.
    """
    kind = model.config.model_type
    if kind not in _ARCHITECTURES:
        raise UserError(f"format=gguf knows {', '.join(_ARCHITECTURES)}, not model_type '{kind}'.")
    for grid in dict.fromkeys(model.grids.values()):
        if (grid.bits, grid.symmetric) not in _TYPES or grid.group_size != _BLOCK:
            bits = 4 if grid.bits <= 6 else 8
            asked = f"bits={bits} group_size={_BLOCK} symmetric=true"
            kind = "symmetric" if grid.symmetric else "asymmetric"
            raise UserError(
                f"No type of GGUF holds {grid.bits} bits, {kind}, in groups of {grid.group_size}; the "
                f"nearest that one does is {asked} quant.scale_dtype=float16 ({_TYPES[bits, True]})."
            )
        if grid.scale_dtype != "float16":
            raise UserError(
                "format=gguf stores scales in float16, and this run measured others: run it with "
                "quant.scale_dtype=float16."
            )
    _check_products(model)
    _cut(model.tokenizer)


def bits_of(part: Part) -> int:
    """Return the bits of a part in the file: of a linear codes and d, with m where there is one."""
    if isinstance(part, Tensor):
        return 32 * part.numel() if part.dim() == 1 else 8 * part.nbytes
    per_block = 16 if part.zero_point is None else 32
    return part.grid.bits * part.qvalue.numel() + per_block * part.scale.numel()


def open_sink(folder: Path, model: StoredModel, most_bytes: int) -> GGUFFile:
    """Begin a file."""
    del most_bytes  # one file, which llama.cpp maps
    return GGUFFile(folder, model)


class GGUFFile:
    """Takes the parts of a model one by one."""

    def __init__(self, folder: Path, model: StoredModel) -> None:
        """Begin the file of a model, its configuration and tokenizer first."""
        import gguf

        arch = gguf.MODEL_ARCH[_ARCHITECTURES[model.config.model_type]]
        self._model = model
        self._names = gguf.get_tensor_name_map(arch, model.architecture.n_blocks)
        self._rotates_pairs = arch is gguf.MODEL_ARCH.LLAMA
        self._file = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[arch], use_temp_file=True)
        grid = next(iter(model.grids.values()))
        kind = gguf.LlamaFileType[f"MOSTLY_{_TYPES[grid.bits, grid.symmetric]}"]
        self._file.add_file_type(kind)
        self._file.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_config(self._file, model)
        model.config.save_pretrained(folder)  # for readers of what llama.cpp takes for granted
        _add_tokenizer(self._file, model)

    def add(self, name: str, part: Part) -> None:
        """Take a parameter or a quantized linear."""
        import gguf

        if isinstance(part, QuantizedLinear):
            blocks = encode(part)
            kind = gguf.GGMLQuantizationType[_TYPES[part.grid.bits, part.grid.symmetric]]
            self._file.add_tensor(
                self._named(f"{name}.weight"), self._ordered(name, blocks), raw_dtype=kind
            )
            return
        if part.dim() == 1:  # as llama.cpp wants norms and biases
            part = part.float() + (self._model.architecture.norm_offset if "norm" in name else 0)
        kind = None
        if part.dtype is torch.bfloat16:
            part, kind = part.view(torch.uint8), gguf.GGMLQuantizationType.BF16
        module = name.rpartition(".")[0]
        self._file.add_tensor(self._named(name), self._ordered(module, part.numpy()), raw_dtype=kind)

    def close(self) -> None:
        """Write the file."""
        self._file.write_header_to_file()
        self._file.write_kv_data_to_file()
        self._file.write_tensors_to_file()
        self._file.close()

    def _named(self, name: str) -> str:
        gguf_name = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, f"{name} has no name in llama.cpp"
        return str(gguf_name)

    def _ordered(self, module: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of a tensor as llama.cpp has them."""
        architecture = self._model.architecture
        heads = {"q_proj": architecture.n_heads, "k_proj": architecture.n_kv_heads}
        n_heads = heads.get(module.rpartition(".")[2])
        if n_heads is None or not self._rotates_pairs:
            return rows
        pairs = rows.reshape(n_heads, 2, -1, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)


def encode(linear: QuantizedLinear) -> NDArray[np.uint8]:
    """Return the blocks of a linear, [out_features, bytes of a row]."""
    d = linear.scale.to(torch.float16).unsqueeze(-1)
    codes = linear.qvalue.view(*linear.scale.shape, _BLOCK)
    if linear.grid.bits == 8:
        parts = [_bytes(d), codes.view(torch.uint8)]
    else:
        codes = codes.to(torch.int16) + (8 if linear.zero_point is None else 0)
        low, high = codes[..., : _BLOCK // 2], codes[..., _BLOCK // 2 :]
        parts = [_bytes(d), (low | high << 4).to(torch.uint8)]
        if linear.zero_point is not None:
            parts.insert(1, _bytes(_minimum(linear).to(torch.float16).unsqueeze(-1)))
    blocks: NDArray[np.uint8] = torch.cat(parts, dim=-1).flatten(1).numpy()
    return blocks


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _minimum(linear: QuantizedLinear) -> Tensor:
    assert linear.zero_point is not None
    return -linear.scale * linear.zero_point.float()


def _check_products(model: StoredModel) -> None:
    """Refuse asymmetric grids whose minimum float16 does not hold."""
    if all(grid.symmetric for grid in model.grids.values()):
        return
    n_off = n_groups = 0
    for _, part in model.parts():
        if isinstance(part, QuantizedLinear) and part.zero_point is not None:
            minimum = _minimum(part)
            n_off += int((minimum.half().float() != minimum).sum())
            n_groups += minimum.numel()
    if n_off:
        raise UserError(
            f"Q4_1 stores scale times zero point in float16, which does not hold it for {n_off:,} of this "
            f"run's {n_groups:,} groups, so other numbers would be deployed than were measured; run it "
            "with symmetric=true (Q4_0), or use format=compressed-tensors or awq."
        )


def _add_config(file: Any, model: StoredModel) -> None:
    """Write the sizes and constants of the model that readers of GGUF want to know."""
    config, architecture = model.config, model.architecture
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"format=gguf does not know rope_type '{rope['rope_type']}' yet.")
    file.add_name(model.config.name_or_path or model.config.model_type)
    file.add_vocab_size(architecture.vocab_size)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(architecture.hidden_size)
    file.add_block_count(architecture.n_blocks)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(architecture.n_heads)
    file.add_head_count_kv(architecture.n_kv_heads)
    file.add_key_length(architecture.head_dim)
    file.add_value_length(architecture.head_dim)
    file.add_rope_dimension_count(architecture.head_dim)
    file.add_rope_freq_base(float(rope["rope_theta"]))
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        file.add_sliding_window(config.sliding_window)


def _add_tokenizer(file: Any, model: StoredModel) -> None:
    """Write vocabulary, merges, special tokens and chat template."""
    tokenizer = model.tokenizer
    content = _content(tokenizer)
    added = {token["id"]: token for token in content["added_tokens"]}
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for index in range(model.architecture.vocab_size):
        tokens.append(words.get(index, f"[PAD{index}]"))
        if index in added:
            kinds.append(_CONTROL if added[index]["special"] else _USER_DEFINED)
        else:
            kinds.append(_NORMAL if index in words else _UNUSED)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(_cut(tokenizer))
    file.add_token_list(tokens)
    file.add_token_types(kinds)
    merges = content["model"]["merges"]
    file.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(file, f"add_{name}_token_id")(index)
    file.add_add_bos_token(False)  # as measured: texts are encoded without special tokens
    if isinstance(tokenizer.chat_template, str):
        file.add_chat_template(tokenizer.chat_template)


def _cut(tokenizer: Any) -> str:
    """Return llama.cpp's name of the way in which a tokenizer cuts texts before BPE.

    Raises:
        UserError: for a tokenizer that is no byte-level BPE, or cuts in a way that is not known here.
    """
    content = _content(tokenizer)
    before = content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    regex = "".join(step["pattern"].get("Regex", "?") for step in steps if step.get("type") == "Split")
    is_known = {"ByteLevel", "Split"} >= {step.get("type") for step in steps}
    if content["model"]["type"] == "BPE" and is_known and regex in _CUTS:
        return _CUTS[regex]
    raise UserError(
        "format=gguf writes byte-level BPE tokenizers that cut texts as GPT-2, Llama 3 or Qwen2 do; this "
        "model's is another, so llama.cpp would make other tokens of a text: use another format."
    )


def _content(tokenizer: Any) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return content
