"""Models: where their weights come from, how their decoder blocks are laid out, how to walk them.

A model family is data. To add one whose decoder block has the usual shape (attention, then a gated
MLP, each behind a norm):

1. write `families/<name>.yaml` with the fields of `Architecture`, as the others there do;
2. add `conf/model/tiny-<name>.yaml`, a random model of that family, for the tests;
3. run `pytest tests/contract`: every family there is quantized and compared with its own outputs.

Mixtures of experts and unknown shapes are refused with a sentence that says why.
"""

from faqbench.models.architecture import Architecture, Role, Rows, architecture_of
from faqbench.models.blocks import (
    BlockStream,
    Call,
    Inputs,
    Passenger,
    blocks_passed_by,
    decoding,
    open_stream,
    walk_blocks,
)
from faqbench.models.hadamard import Rotation
from faqbench.models.holder import ModelHolder
from faqbench.models.inspection import inspect_model
from faqbench.models.loading import LoadedModel, fingerprint_model, load_model, load_tokenizer
from faqbench.models.memory import Budget, budget_of, is_streamed, streamed_bytes, streaming_note
from faqbench.models.model import Model, Room, device_of, twin
from faqbench.models.packed import (
    PACKED_VERSION,
    Packed,
    bring_packed,
    open_packed,
    packed_files,
    packed_place,
    packed_source,
    stated_of,
)
from faqbench.models.prepared import (
    OPERANDS_ATTENTION,
    OnlineRotation,
    PreparedLinear,
    change_operands,
    prepare,
    prepared_input,
    register_attention,
)
from faqbench.models.rotation import (
    ROTATION_VERSION,
    RotatedTensors,
    check_rotation,
    describe_rotation,
    probe_logits,
)
from faqbench.models.sources import model_config, pinned, tokenizer_source, weights_source
from faqbench.models.tensors import Tensors, is_finite
from faqbench.models.tokenizers import bos_of, check_ids, encode, fingerprint_tokenizer

__all__ = [
    "OPERANDS_ATTENTION",
    "PACKED_VERSION",
    "ROTATION_VERSION",
    "Architecture",
    "BlockStream",
    "Budget",
    "Call",
    "Inputs",
    "LoadedModel",
    "Model",
    "ModelHolder",
    "OnlineRotation",
    "Packed",
    "Passenger",
    "PreparedLinear",
    "Role",
    "Room",
    "RotatedTensors",
    "Rotation",
    "Rows",
    "Tensors",
    "architecture_of",
    "blocks_passed_by",
    "bos_of",
    "bring_packed",
    "budget_of",
    "change_operands",
    "check_ids",
    "check_rotation",
    "decoding",
    "describe_rotation",
    "device_of",
    "encode",
    "fingerprint_model",
    "fingerprint_tokenizer",
    "inspect_model",
    "is_finite",
    "is_streamed",
    "load_model",
    "load_tokenizer",
    "model_config",
    "open_packed",
    "open_stream",
    "packed_files",
    "packed_place",
    "packed_source",
    "pinned",
    "prepare",
    "prepared_input",
    "probe_logits",
    "register_attention",
    "stated_of",
    "streamed_bytes",
    "streaming_note",
    "tokenizer_source",
    "twin",
    "walk_blocks",
    "weights_source",
]
