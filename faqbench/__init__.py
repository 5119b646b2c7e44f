"""faqbench: an experiment harness for post-training quantization of language models.

Hydra composes a configuration, a runner calibrates, quantizes, evaluates and records, and reports
are regenerated from the records alone. `faqbench.pipeline.run` is the place to start reading.
"""

__version__ = "0.1.0"
