import pytest

from faqbench.pipeline.timing import Timings


def test_each_stage_has_its_seconds_and_whether_it_was_cached():
    timings = Timings()
    with timings.stage("load"):
        pass
    with timings.stage("statistics") as stage:
        stage.cached = True
    assert [s.cached for s in timings.results.values()] == [False, True]
    assert all(s.seconds >= 0 for s in timings.results.values())


def test_a_stage_that_fails_leaves_no_timing():
    timings = Timings()
    with pytest.raises(RuntimeError), timings.stage("load"):
        raise RuntimeError
    assert timings.results == {}
