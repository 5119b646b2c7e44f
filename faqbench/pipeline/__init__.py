"""One cell from configuration to record: `run` is the story of the whole program, on one screen."""

from faqbench.pipeline.run import run, write_failure

__all__ = ["run", "write_failure"]
