"""Calibration sets: windows of tokens, drawn with a seed from a domain's calibration part.

`draw` is the pure part (texts and a tokenizer in, tokens out); `calibration_tokens` reads an
experiment. Statistics, fingerprints and cache keys all start from the `CalibrationSet` they return.
"""

from faqbench.calibration.drawing import CalibrationSet, Tokenizer, calibration_tokens, draw

__all__ = ["CalibrationSet", "Tokenizer", "calibration_tokens", "draw"]
