import math

from faqbench.presearch.search import successive_halving

LOSSES = {"awq": 5.0, "a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


def run(rounds, keep, losses=LOSSES):
    asked = []

    def loss(name, draw):
        asked.append((name, draw))
        return losses[name] + 0.01 * draw

    return successive_halving(list(losses), rounds, keep, loss, "awq"), asked


def test_the_best_share_goes_on_and_the_baseline_always():
    history, _ = run([1, 2, 3], 0.5)
    assert history[0] == ["a", "b", "c", "d", "awq"]
    assert history[1] == ["a", "b", "awq"]
    assert history[2] == ["a", "awq"]


def test_every_pair_is_asked_for_once():
    _, asked = run([1, 2, 3], 0.5)
    assert len(asked) == len(set(asked)) == 5 + 3 + 2
    assert [d for n, d in asked if n == "awq"] == [0, 1, 2]


def test_one_rival_is_always_left():
    history, _ = run([1, 2], 0.01)
    assert history[-1] == ["a", "awq"]


def test_a_later_draw_can_turn_the_order():
    losses = {("awq", 0): 9, ("awq", 1): 9, ("a", 0): 1, ("a", 1): 9, ("b", 0): 2, ("b", 1): 3}
    history = successive_halving(
        ["awq", "a", "b"], [1, 2], 0.99, lambda name, draw: losses[name, draw], "awq"
    )
    assert history == [["a", "b", "awq"], ["b", "a", "awq"]]


def test_a_loss_that_is_not_a_number_is_the_worst():
    history, _ = run([1], 0.5, LOSSES | {"a": math.nan})
    assert history[0][-1] == "a"
