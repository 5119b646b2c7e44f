"""One cell from configuration to record: `run` is the story of the whole program, on one screen."""

from faqbench.pipeline.run import check_models, quantize_again, run, write_failure

__all__ = ["check_models", "quantize_again", "run", "write_failure"]
