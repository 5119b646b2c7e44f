"""One cell from configuration to record: `run` is the story of the whole program, on one screen."""

from faqbench.pipeline.run import finished_record, run, write_failure

__all__ = ["finished_record", "run", "write_failure"]
