"""How soon rules that look after every draw decide, how often they are wrong, and what windows add.

    python tests/benchmarks/bench_settle.py                 20,000 streams of 80 draws: half a minute
    python tests/benchmarks/bench_settle.py --streams 2000

First table: effects in standard deviations of a paired difference; wrong decisions are those without an
effect. `e-process` is what `faqbench settle` uses; the group-sequential rules spend alpha = 0.05 over 80
looks, their one constant found by simulation, which is exact since the t-statistics do not depend on the
standard deviation: equal nominal p-values (Pocock), p-values that fall with the square root of n (O'Brien
and Fleming), and between (Wang and Tsiatis, 0.25). `calibrated` is the e-process with its threshold lowered
until it errs in 5 % of 80 looks. The last rows are fixed designs of 90 % power: one that knew the effect,
and one that allowed for half of it.

Second table: draws, windows and their interaction; how often some look's interval misses the truth, with
windows fixed, and with windows doubled up to three times whenever they dominate the interval.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from scipy.stats import norm, t
from statsmodels.stats.power import TTestPower

from faqbench.statistics.sequential import Array, draws_margin, look_at

ALPHA, MOST = 0.05, 80
EFFECTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
N = np.arange(1, MOST + 1)
Rule = Callable[[Array], Array]  # t-statistics [streams, MOST] -> whether it decides


def t_statistics(x: Array) -> Array:
    """Return the t-statistic after every draw; that of one draw is 0."""
    mean = x.cumsum(axis=1) / N
    squares = np.maximum((x**2).cumsum(axis=1) - N * mean**2, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt(N) * mean / np.sqrt(squares / (N - 1))
    found[:, 0] = 0.0
    return found


def margin_in_t(alpha: float) -> Array:
    """Return |T| beyond which the e-process decides, after every draw."""
    return np.sqrt(N) * draws_margin(N, 1.0, alpha)


def as_normal(found: Array) -> Array:
    """Return normal deviates with the t-statistics' p-values."""
    tails = t.logsf(np.abs(found[:, 1:]), N[1:] - 1)
    return np.pad(norm.isf(np.exp(tails)), ((0, 0), (1, 0)))


def group_sequential(null: Array, shape: float) -> Rule:
    """Return Wang and Tsiatis's rule of a shape; 0.5 is Pocock's, 0 O'Brien and Fleming's."""
    weights = (N / MOST) ** (0.5 - shape)
    constant = np.quantile((as_normal(null) * weights).max(axis=1), 1 - ALPHA)
    return lambda found: as_normal(found) * weights > constant


def calibrated(null: Array) -> Rule:
    """Return the e-process with the level at which it errs in 5 % of 80 looks."""
    levels = np.geomspace(ALPHA, 4 * ALPHA, 60)
    wrong = [np.mean((np.abs(null) > margin_in_t(a)).any(axis=1)) for a in levels]
    level = levels[np.searchsorted(wrong, ALPHA) - 1]
    return lambda found: np.abs(found) > margin_in_t(level)


def fixed_design(effect: float) -> str:
    """Return the number of draws of a fixed design of 90 % power."""
    return f"{math.ceil(TTestPower().solve_power(effect, alpha=ALPHA, power=0.9))}"


def compare_rules(n_streams: int) -> Table:
    """Return the first table."""
    rng = np.random.default_rng(0)
    calibration = t_statistics(rng.standard_normal((n_streams, MOST)))
    rules: dict[str, Rule] = {
        "e-process": lambda found: np.abs(found) > margin_in_t(ALPHA),
        "calibrated": calibrated(calibration),
        "Pocock": group_sequential(calibration, 0.5),
        "Wang and Tsiatis 0.25": group_sequential(calibration, 0.25),
        "O'Brien and Fleming": group_sequential(calibration, 0.0),
    }
    noise = rng.standard_normal((n_streams, MOST))
    found = {effect: t_statistics(noise + effect) for effect in EFFECTS}
    table = Table(title="mean draws (decided %), looks after every draw up to 80")
    for head in ("rule", "wrong %", *(f"effect {e}" for e in EFFECTS[1:])):
        table.add_column(head, justify="left" if head == "rule" else "right")
    for name, rule in rules.items():
        cells = []
        for effect, statistics in found.items():
            decided = rule(statistics)
            share = decided.any(axis=1)
            draws = np.where(share, decided.argmax(axis=1) + 1, MOST).mean()
            text = f"{100 * share.mean():.1f}"
            cells.append(text if effect == 0 else f"{draws:.1f} ({float(text):.0f})")
        table.add_row(name, *cells)
    table.add_row("fixed, knew the effect", "5.0", *(fixed_design(e) for e in EFFECTS[1:]))
    table.add_row("fixed, allowed for half", "5.0", *(fixed_design(e / 2) for e in EFFECTS[1:]))
    return table


def misses(rng: np.random.Generator, sds: tuple[float, float, float], n_items: int, grow: bool):
    """Say whether some look's interval misses the truth, 0, in one experiment of 40 draws."""
    draw_sd, item_sd, residual_sd = sds
    most = 8 * n_items if grow else n_items
    y = draw_sd * rng.standard_normal((40, 1)) + item_sd * rng.standard_normal(most)
    y = y + residual_sd * rng.standard_normal((40, most))
    n, k = 2, 0
    while n <= len(y):
        look = look_at(y[:n, : n_items * 2**k], alpha=ALPHA, draws_differ=True, n_growths=k)
        if abs(look.mean) > look.margin:
            return True
        if grow and k < 3 and look.items_dominate:
            k += 1
        else:
            n += 1
    return False


def compare_sources(n_streams: int) -> Table:
    """Return the second table."""
    table = Table(title="intervals that miss the truth at some look, % (40 draws)")
    for head in ("sd of draws, windows, both", "windows", "fixed", "doubled where they dominate"):
        table.add_column(head, justify="right")
    for sds in ((1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 3, 1), (0.3, 1, 1), (0, 1, 1), (1, 8, 1)):
        for n_items in (5, 20):
            rng = np.random.default_rng(1)
            shares = [
                100 * np.mean([misses(rng, sds, n_items, grow) for _ in range(n_streams)])
                for grow in (False, True)
            ]
            table.add_row(str(sds), str(n_items), *(f"{share:.1f}" for share in shares))
    return table


@pytest.mark.benchmark
def test_bench_settle() -> None:
    Console().print(compare_rules(2000), compare_sources(100))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000)
    n = parser.parse_args().streams
    Console(width=140).print(compare_rules(n), compare_sources(n // 20))
