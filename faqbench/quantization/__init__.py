"""Quantization: stages, each a pure function of tensors, and the walk that applies them.

A method is a composition: `scale` x `clip` x `correct` x `round`, or `refine` in their place, of a model
that may be rotated before (`models.rotation`) and whose activations may be quantized too;
`conf/quant/<name>.yaml` is a preset of these. Where each lives:

    reproducible.py sums and factorisations that no number of threads changes
    grid.py         codes, scales and zero points: what a quantized weight is
    preview.py      FAQ's importance: this block's activations with those of later blocks or linears
    activation_grid.py  the grid of a linear's input
    scale.py        AWQ's search over scales made of channels' importance, through the Gram matrix;
                    SmoothQuant's and LAE's scales, in closed form
    module_loss.py  the reference's objective for the same search, on every token or on a sample of them
    clip.py         searches for shrunken ranges: AWQ's, and the closest
    activations.py  what the stages know of the activations: mean|x| and Gram matrix per block and role
    correct.py      QEP and LoaQ: weights moved to make up for the error made upstream
    folding.py      where a role's input scale goes when a model is stored, here and elsewhere
    gptq.py         rounding column by column: GPTQ, GPTAQ, FOEM, ResComp
    qronos.py       weights solved for anew, then GPTQ: Qronos
    refine.py       a block learned as a whole: OmniQuant, LRQuant, LRQuant+, SignRound
    method.py       one role of one block through scale, clip and round: read this first
    streams.py      the model in full precision and as quantized so far, block by block
    sample.py       the same for the beginnings of a few windows, for tracing and `loss=attention`
    engine.py       one block, by any method
    walk.py         from block to block, on the walk over a model (`models.blocks`), alone or beside others
    checkpoint.py   quantized linears on disk

To add a value of a stage: write its function of tensors in a file here with its source in the docstring,
and its row in the table of `config/method.py`, which lists what each stage's function is given. A preset
that uses it is one yaml.
"""

from faqbench.quantization.activation_grid import describe_activations
from faqbench.quantization.activations import ActivationStore, RoleStatistics, observe
from faqbench.quantization.checkpoint import (
    CHECKPOINT_VERSION,
    QuantizedTensors,
    StoredLinears,
    fingerprint_codes,
    quantize_inputs,
    write_linear,
)
from faqbench.quantization.engine import CODE_VERSION, FinishedBlock
from faqbench.quantization.folding import report_packed
from faqbench.quantization.grid import Grid, QuantizedLinear, fake_quantize, quantize
from faqbench.quantization.method import assign_grids
from faqbench.quantization.reports import BlockReport, LinearReport, QuantizedModel, RotationReport
from faqbench.quantization.streams import Calibration, check_correction, may_observe_on_the_way, reads_store
from faqbench.quantization.walk import Companion, may_be_companion, quantize_model

__all__ = [
    "CHECKPOINT_VERSION",
    "CODE_VERSION",
    "ActivationStore",
    "BlockReport",
    "Calibration",
    "Companion",
    "FinishedBlock",
    "Grid",
    "LinearReport",
    "QuantizedLinear",
    "QuantizedModel",
    "QuantizedTensors",
    "RoleStatistics",
    "RotationReport",
    "StoredLinears",
    "assign_grids",
    "check_correction",
    "describe_activations",
    "fake_quantize",
    "fingerprint_codes",
    "may_be_companion",
    "may_observe_on_the_way",
    "observe",
    "quantize",
    "quantize_inputs",
    "quantize_model",
    "reads_store",
    "report_packed",
    "write_linear",
]
