"""`evaluation.add_bos` through the command line: what the record says is what every request was given."""

import pytest

from faqbench.cli import main
from faqbench.records import find_runs

TASK = "arc_easy_validation"


@pytest.mark.packaged
def test_a_tokenizer_whose_template_adds_no_bos_gives_one_in_front_of_every_request(tmp_path):
    def scored(add_bos):
        runs = tmp_path / add_bos
        cell = ["model=tiny-llama", "quant=fp", "evaluation.protocols=[]", "limit=4"]
        cell += [f"evaluation.tasks=[{TASK}]", "tracking=none", "dtype=float32"]
        assert main(["-q", *cell, f"evaluation.add_bos={add_bos}", f"paths.runs={runs}"]) == 0
        ((record,), _) = find_runs(runs)
        return record.extra["evaluation"][TASK]["config"]

    with_bos, without = scored("true"), scored("false")
    assert with_bos["add_bos"] and not without["add_bos"]
    more = with_bos["n_unshared_tokens"] - without["n_unshared_tokens"]
    assert more == with_bos["n_requests"] > 8
