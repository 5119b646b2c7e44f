"""What a record says of its sources, against what they are now, without a run."""

import json
from dataclasses import replace

from toy_runs import write_toy_run

from faqbench import sources
from faqbench.assets import packaged_data_place


def test_a_branch_of_the_hub_that_moved_is_another_run(compose, monkeypatch, tmp_path):
    experiment = compose("model=qwen3-8b", "quant=fp", "evaluation=none")
    monkeypatch.setattr(sources, "resolve_commit", lambda *_: "b" * 40)
    name = f"model.hub_id={experiment.model.hub_id}"
    record = write_toy_run(tmp_path, "fp")
    data = {"packaged data": {"asset": json.loads(json.dumps(packaged_data_place()[1]))}}

    def judged(extra):
        return sources.why_not_reusable(replace(record, extra=extra), experiment)

    assert judged({"sources": data | {name: {"commit": "b" * 40}}}) is None
    moved = judged({"sources": data | {name: {"commit": "a" * 40}}})
    assert moved == f"{name} is at commit bbbbbbbbbb now, not aaaaaaaaaa"
    assert judged({}) == f"its record does not tell what {name} held"
