"""Bias scenarios: what may be wrong with a calibration set, each as a pure function with a number.

A scenario is one yaml in `conf/scenario/` that sets some fields of `config.calibration.ScenarioSection`;
fields compose, and so do scenarios with any corpus and any method. Where each field acts:

    domain, mixture, skew       which corpora give which share of the windows (`config.calibration`)
    n_samples                   how many windows
    min_, max_characters        texts.py: which texts are drawn at all
    length_power, rarity        texts.py: which texts are drawn first
    copies                      texts.py: every drawn text occurs several times
    shuffle_tokens, noise_rate  tokens.py: what happens to a window's tokens
    random_tokens               tokens.py: there is no text
    leak                        the windows are the evaluation's own (`pipeline.calibrating`)

To add a scenario made of these, write its yaml. To add a field: a function of texts or of tokens and a
generator of its own in `texts.py` or `tokens.py`, a line where the others are applied there, the field
in `ScenarioSection` and in `conf/scenario/matched.yaml`, where null or false leaves things alone, and its
name in `config.identity.calibration_identity`. Each field draws from a generator of its own, so adding
one moves no other.
"""

from faqbench.calibration.scenarios.texts import DrawnTexts, draw_texts
from faqbench.calibration.scenarios.tokens import change_tokens, draw_random_tokens

__all__ = ["DrawnTexts", "change_tokens", "draw_random_tokens", "draw_texts"]
