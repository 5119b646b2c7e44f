"""Calibration sets: windows of tokens, drawn with a seed from corpora, biased on purpose or not.

`draw` is the pure part: corpora, a tokenizer and a request in, tokens out. The scenarios' functions are
in `scenarios`, how far a set is from a reference set in `distance`. Statistics, fingerprints and cache
keys all start from the `CalibrationSet`; `pipeline.calibrating` reads an experiment and caches.
"""

from faqbench.calibration.calibration_set import (
    CalibrationSet,
    DrawRequest,
    activation_shift,
    load_calibration_set,
    request_of,
    save_calibration_set,
    token_divergence,
)
from faqbench.calibration.drawing import CODE_VERSION, draw, draw_evaluation, draw_without_text

__all__ = [
    "CODE_VERSION",
    "CalibrationSet",
    "DrawRequest",
    "activation_shift",
    "draw",
    "draw_evaluation",
    "draw_without_text",
    "load_calibration_set",
    "request_of",
    "save_calibration_set",
    "token_divergence",
]
