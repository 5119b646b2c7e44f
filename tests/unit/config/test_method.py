"""The table of stage values: what follows from it for identities, calibration and validation."""

import json
from pathlib import Path

import pytest

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.identity import identity_hash, identity_of
from faqbench.config.method import OWNED, STAGES, UNDECIDING, MethodStage, Reads, StageValue, method_of

STUDY = Path(__file__).parents[3] / "runs" / "study"
AWQ = {"scale": "awq", "clip": "search", "correct": "none", "round": "nearest"}
OPTIONS = {"bits": 3, "search": {"n_grid": 20}, "preview": {"window": 3}, "gptq": {"damping": 0.01}}


def options_of(section: type) -> set[str]:
    """Dotted paths of all options of a configuration's section, one level of sections deep."""
    paths = set()
    for name, field in section.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        paths |= {f"{name}.{leaf}" for leaf in inner} if inner else {name}
    return paths


def test_every_option_of_a_method_stands_in_the_table():
    assert options_of(QuantSection) - set(STAGES) - UNDECIDING == OWNED


def test_options_of_idle_stages_are_no_part_of_an_identity():
    identity = method_of(AWQ).identity({**AWQ, **OPTIONS})
    assert identity == {**AWQ, "bits": 3, "search": {"n_grid": 20}}


def test_full_precision_is_all_that_its_identity_says():
    assert method_of({"round": "none"}).identity({**AWQ, **OPTIONS}) == {"round": "none"}


def test_an_option_that_nobody_owns_counts():
    assert method_of(AWQ).identity({**AWQ, "later": {"knob": 1}})["later"] == {"knob": 1}


def test_an_option_at_its_neutral_value_is_no_part_of_an_identity(monkeypatch):
    value = StageValue(
        name="nearest", options={"dither.share": 0.0}, call="faqbench.quantization.grid:round_nearest"
    )
    monkeypatch.setitem(
        STAGES, "round", MethodStage(name="round", values={"nearest": value}, is_always_named=True)
    )
    plain = {"scale": "none", "clip": "none", "correct": "none", "round": "nearest"}
    neutral = method_of(plain).identity({**plain, "dither": {"share": 0.0}})
    assert neutral == plain
    assert method_of(plain).identity({**plain, "dither": {"share": 0.1}}) != plain


def test_a_stage_that_came_later_is_named_where_it_does_something(monkeypatch):
    turn = MethodStage(
        name="rotate",
        values={"none": StageValue(name="none", is_idle=True), "hadamard": StageValue(name="hadamard")},
    )
    monkeypatch.setitem(STAGES, "rotate", turn)
    assert "rotate" not in method_of({**AWQ, "rotate": "none"}).identity(AWQ)
    assert method_of({**AWQ, "rotate": "hadamard"}).identity(AWQ)["rotate"] == "hadamard"


@pytest.mark.parametrize(
    ("quant", "reads"),
    [
        ("fp", set()),
        ("rtn", set()),
        ("awq", {Reads.MEANS, Reads.GRAM}),
        ("faq", {Reads.MEANS, Reads.LATER_MEANS, Reads.GRAM}),
        ("gptq", {Reads.HESSIAN}),
        ("loaq", {Reads.BOTH_STREAMS, Reads.RESIDUALS}),
    ],
)
def test_a_method_reads_what_its_stages_read(compose, quant, reads):
    method = compose("model=tiny-llama", f"quant={quant}").method
    assert method.reads == reads
    assert method.is_calibrated == bool(reads)


def test_a_value_of_a_newer_version_counts_as_calibrated():
    assert method_of({"round": "nearest", "scale": "from-tomorrow"}).is_calibrated


def test_plain_rounding_is_nearest_with_all_else_idle():
    assert method_of({"round": "nearest"}).is_plain_rounding
    assert not method_of(AWQ).is_plain_rounding
    assert not method_of({"round": "gptq"}).is_plain_rounding


def test_an_unknown_value_is_answered_with_those_of_its_stage(compose):
    with pytest.raises(UserError, match=r"quant\.round=gtpq .*'gptq'.* Did you mean 'gptq'\?"):
        compose("model=tiny-llama", "quant.round=gtpq")


def test_full_precision_leaves_every_stage_idle(compose):
    with pytest.raises(UserError, match=r"quant\.scale and quant\.clip must be none too"):
        compose("model=tiny-llama", "quant=awq", "quant.round=none")


def test_committed_runs_keep_their_ids():
    lines = (STUDY / "_pack" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 243
    for record in records:
        assert record["run_id"].endswith(f"-{identity_hash(identity_of(record['config']))}")
