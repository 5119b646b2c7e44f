"""Calibrating on what is evaluated: refused in one sentence, unless it is allowed by name."""

import pytest

from faqbench.config import UserError
from faqbench.corpora import part_of

SCORED = "evaluation.protocols=[wikitext2-64]"


def in_calibration_part(texts):
    return next(text for text in texts if part_of(text) == "calibration")


@pytest.fixture
def leaked(tmp_path):
    """A calibration file and an evaluation file that share one passage of 60 words."""
    shared = " ".join(f"word{i}" for i in range(60))
    own = [in_calibration_part(f"note {j} {i} is here " * 9 for j in range(99)) for i in range(8)]
    copy = in_calibration_part(f"{shared} {j}" for j in range(99))
    calibration, evaluation = tmp_path / "calibration.txt", tmp_path / "evaluation.txt"
    calibration.write_text("\n\n".join([*own, copy]))
    other = [f"line {i} of it, " * 9 for i in range(40)]
    evaluation.write_text("\n\n".join([*other, shared]))
    n_samples = len(calibration.read_bytes()) // 32  # all of it
    return (
        f"calibration.domain={calibration}",
        f"data.wikitext2_path={evaluation}",
        f"calibration.n_samples={n_samples}",
        SCORED,
    )


def test_shared_text_is_refused_with_the_count_and_the_way_out(run, leaked):
    with pytest.raises(
        UserError,
        match=r"'wikitext2-64' shares 1 of its 41 passages.*scenario\.allow_overlap=\[wikitext2-64\]",
    ):
        run("quant=awq", *leaked)


@pytest.mark.parametrize("name", ["wikitext2-64", "wikitext2-*", "*"])
def test_what_is_allowed_by_name_runs_and_is_counted(run, leaked, name):
    record = run("quant=awq", *leaked, f"scenario.allow_overlap=['{name}']").record
    assert record.extra["calibration"]["overlap"] == {"wikitext2-64": 1}


def test_another_name_allows_nothing(run, leaked):
    with pytest.raises(UserError, match="shares 1 of its 41 passages"):
        run("quant=awq", *leaked, "scenario.allow_overlap=[arc_easy_validation]")


def test_text_of_its_own_is_counted_as_none(run, leaked):
    clean = [o for o in leaked if not o.startswith("data")]
    record = run("quant=awq", *clean).record
    assert record.extra["calibration"]["overlap"] == {"wikitext2-64": 0}


def test_a_method_that_reads_no_calibration_is_not_guarded(run, leaked):
    assert "calibration" not in run("quant=rtn", *leaked).record.extra


def test_a_tasks_passages_that_are_calibrated_on_are_refused_too(run, leaked, monkeypatch):
    shared = "Passage: " + " ".join(f"word{i}" for i in range(60))
    asked = []

    def passages(name, experiment, _progress):
        asked.append((name, experiment.n_documents()))
        return [shared, "is it so"]

    monkeypatch.setattr("faqbench.pipeline.gates.task_passages", passages)
    tasks = ("evaluation.protocols=[]", "evaluation.tasks=[boolq_validation]", "limit=5")
    with pytest.raises(UserError, match="'boolq_validation' shares 1 of its 1 passages"):
        run("quant=awq", *leaked, *tasks)
    assert asked == [("boolq_validation", 5)]
