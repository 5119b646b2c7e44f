import pytest

from faqbench.config import UserError
from faqbench.presearch.trials import AWQ, candidates

GRID = (
    "presearch.grids=[{{window: {}, gamma: {}, roles: {}, source: [same_role], stream: [full], "
    "weights: {}, norm: [none], fuse: [convex]}}]"
)


@pytest.fixture
def names(compose):
    def make(window="[1]", gamma="[0.5]", roles="[all]", weights="[uniform]", *more):
        grid = GRID.format(window, gamma, roles, weights)
        experiment = compose("model=tiny-llama", "quant=faq", grid, *more)
        return [candidate.name for candidate in candidates(experiment)]

    return make


def test_every_combination_is_a_candidate_and_awq_comes_first(names):
    found = names("[1, 2]", "[0.5, 0.9]", "[all, residual]")
    assert found[0] == AWQ and len(found) == 1 + 8
    assert "window=2 gamma=0.9 roles=residual" in found


def test_choices_that_preview_nothing_are_awq_itself(names):
    assert names("[0, 2]", "[1.0]") == [AWQ]


def test_weights_do_not_tell_windows_of_one_apart(names):
    assert len(names("[1]", weights="[uniform, linear]")) == 2
    assert len(names("[2]", weights="[uniform, linear]")) == 3


def test_a_candidate_changes_the_preview_alone(compose):
    experiment = compose("model=tiny-llama", "quant=qep-faq", "quant.preview.norm=mean")
    chosen = candidates(experiment)[1]
    method = chosen.quant(experiment.quant)
    same = {"preview": experiment.quant.preview, "trace_windows": experiment.quant.trace_windows}
    assert method.model_copy(update=same) == experiment.quant
    assert method.preview.norm == "none" and method.preview.window == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["presearch.rounds=[2,1]"], r"presearch.rounds=\[2, 1\] must be rising"),
        (["presearch.rounds=[]"], r"presearch.rounds=\[\] must be rising"),
        (["presearch.grids=[]"], "has no candidate"),
        ([GRID.format("[]", "[0.5]", "[all]", "[uniform]")], "has no value for window"),
        ([GRID.format("[1]", "[0.5]", "[al]", "[uniform]")], "Did you mean 'all'?"),
        (["presearch.keep=1.5"], "presearch.keep=1.5 is not allowed"),
        (["presearch.domains=[]"], "names no text"),
    ],
)
def test_a_search_that_means_nothing_is_one_sentence(compose, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        compose("model=tiny-llama", *overrides)
