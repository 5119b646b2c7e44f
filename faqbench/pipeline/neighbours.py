"""Gates that compare a cell with finished runs of the same folder.

Two runs are compared where they scored the same: the same model as loaded, dtype, and tokens or requests.
A cell is worse than another when the paired 95 % interval says so: of the perplexity ratio, over
protocols that both have, else of the mean accuracy over tasks. Chance alone therefore trips a gate in
about one of forty comparisons; its detail names the run and the numbers.

A sweep's order must not decide whether a fault is seen: the later of two runs is marked, with the
earlier one named, whichever of them is at fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faqbench.pipeline.evaluating import Evaluated
from faqbench.records import Gate, RunRecord, find_heads, read_items, read_scores, same_model
from faqbench.statistics import mean_accuracy_difference, mean_difference

_GRID = (
    "bits", "group_size", "symmetric", "symmetric_grid", "scale_dtype", "skip", "overrides",
    "activations", "rotate", "rotation",
)  # fmt: skip
_MOST_COMPARED = 24  # the scores of each are read, and chance alone marks one comparison in forty


class Neighbours:
    """The finished runs of a folder, of which the latest are compared."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        records, _ = find_heads(runs) if runs.is_dir() else ([], [])
        self._records = [r for r in records if r.status == "finished"]

    def same_tokens(self, record: RunRecord) -> Gate:
        """Compare the tokens of each protocol with those of runs that should have scored the same."""
        scored = {k: v for k, v in record.fingerprints.items() if k.startswith("protocol/")}
        different = [
            f"{name.removeprefix('protocol/')} of {other.run_id}"
            for other in self._of_same_model(record)
            for name, fingerprint in scored.items()
            if other.fingerprints.get(name, fingerprint) != fingerprint
            and _n_windows(other, name) == _n_windows(record, name)
        ]
        unverified = [n for n, f in record.extra["evaluation"].items() if not f.get("verified", True)]
        if different:
            detail = f"other tokens than {', '.join(different)}"
        elif unverified:
            detail = f"no count and hash are known for {', '.join(unverified)} with this tokenizer"
        else:
            detail = "each protocol has its known tokens"
        return Gate(name="same_tokens", passed=not different, detail=detail)

    def not_worse_than_rtn(self, record: RunRecord, evaluated: Evaluated) -> Gate:
        """Compare a method with plain rounding on the same grid, and plain rounding with the methods."""
        is_rtn = record.method.is_plain_rounding
        others = [
            other
            for other in self._of_same_model(record)
            if other.method.is_plain_rounding != is_rtn
            and other.method.quantizes
            and _grid(other) == _grid(record)
        ]
        return self._compare(
            "not_worse_than_rtn", record, evaluated, others, should_win=[not is_rtn] * len(others)
        )

    def not_worse_than_fewer_bits(self, record: RunRecord, evaluated: Evaluated) -> Gate:
        """Compare a cell with those that differ in their bits alone."""
        calibration, settings = record.fingerprints.get("calibration"), _but_bits(record)
        others = [  # what is quickly told comes first, since thousands may be asked
            other
            for other in self._of_same_model(record)
            if other.fingerprints.get("calibration") == calibration
            and _quant(other, "bits") not in (None, _quant(record, "bits"))
            and other.method.quantizes
            and _but_bits(other) == settings
        ]
        wins = [bool(_quant(record, "bits") > _quant(other, "bits")) for other in others]
        return self._compare("not_worse_than_fewer_bits", record, evaluated, others, wins)

    def _of_same_model(self, record: RunRecord) -> list[RunRecord]:
        return [
            other
            for other in self._records
            if other.run_id != record.run_id
            and same_model(other, record)
            and other.config.get("dtype") == record.config["dtype"]
        ]

    def _compare(
        self,
        name: str,
        record: RunRecord,
        evaluated: Evaluated,
        others: Sequence[RunRecord],
        should_win: Sequence[bool],
    ) -> Gate:
        """Return a gate that fails where the one that should win is worse beyond chance."""
        wrong: list[str] = []
        right: list[str] = []
        unread: list[str] = []
        latest = sorted(zip(others, should_win, strict=True), key=lambda o: o[0].started)
        for other, wins in latest[-_MOST_COMPARED:]:
            try:
                judged = _worse(record, evaluated, other, self._runs / other.run_id)
            except ValueError as error:
                unread.append(f"; {other.run_id} is left out: {error}")
                continue
            if judged is None:
                continue
            is_worse, is_better, numbers = judged
            fault = is_worse if wins else is_better
            relation = "worse" if is_worse else "better" if is_better else "no different"
            (wrong if fault else right).append(f"{relation} than {other.run_id} ({numbers})")
        note = "".join(unread)
        if wrong:
            return Gate(name=name, passed=False, detail="; ".join(wrong) + note)
        detail = f"compared with {len(right)} runs" if right else "nothing to compare with"
        detail = right[0] if len(right) == 1 else detail
        return Gate(name=name, passed=True, detail=detail + note)


def _worse(
    record: RunRecord, evaluated: Evaluated, other: RunRecord, folder: Path
) -> tuple[bool, bool, str] | None:
    """Return whether the cell is worse, whether it is better, and the numbers; None without common ones.

    Only what is compared is read from the other's folder.

    Raises:
        ValueError: when that is damaged.
    """
    rng = np.random.default_rng(0)
    common = {
        key for key, value in record.fingerprints.items()
        if other.fingerprints.get(key) == value
    }  # fmt: skip
    protocols = [p for p in record.config["evaluation"]["protocols"] if f"protocol/{p}" in common]
    scores = read_scores(folder) if protocols else {}
    for name in protocols:
        both = evaluated.tokens.get(name), scores.get(name)
        if both[0] is not None and both[1] is not None:
            a, b = (_window_means(values) for values in both)
            if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
                continue
            ratio, low, high = mean_difference(a, b, rng=rng).ratio
            numbers = f"perplexity ratio {ratio:.3f} [{low:.3f}, {high:.3f}] on {name}"
            return low > 1, high < 1, numbers
    tasks = [task for task in record.config["evaluation"]["tasks"] if f"task/{task}" in common]
    items = read_items(folder) if tasks else None
    pairs = [pair for task in tasks for pair in _accuracies(evaluated.items, items, task)]
    if not pairs:
        return None
    difference = mean_accuracy_difference(pairs, rng=rng)
    numbers = (
        f"accuracy {difference.difference:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] over tasks"
    )
    return difference.high < 0, difference.low > 0, numbers


def _window_means(values: Any) -> Any:
    """Return [n_windows, 1]; a compact run has no more."""
    return values.mean(axis=1, dtype=np.float64, keepdims=True)


def _accuracies(items: Any, other: Any, task: str) -> list[tuple[Any, Any]]:
    """Return the correctness of a task's items in both runs, where both have the same items."""
    columns = [
        table[(table["task"] == task) & (table["metric"] == "acc")].set_index("item")["value"]
        for table in (items, other)
        if len(table)
    ]
    if len(columns) < 2 or not len(columns[0]) or not columns[0].index.equals(columns[1].index):
        return []
    return [(columns[0].to_numpy(), columns[1].to_numpy())]


def _n_windows(record: RunRecord, fingerprint: str) -> Any:
    name = fingerprint.removeprefix("protocol/")
    return record.extra.get("evaluation", {}).get(name, {}).get("n_windows")


def _quant(record: RunRecord, key: str) -> Any:
    return record.config.get("quant", {}).get(key)


def _grid(record: RunRecord) -> dict[str, Any]:
    return {key: record.identity["quant"].get(key) for key in _GRID}


def _but_bits(record: RunRecord) -> dict[str, Any]:
    return {k: v for k, v in record.identity["quant"].items() if k != "bits"}
