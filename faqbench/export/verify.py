"""Judging an exported folder: what a process without our modelling code found in it, against tolerances.

whole         every file matches its sha256
stored        every linear in the files is equal to the bit
loaded        every linear as its loader makes it; some multiply in the dtype of the scales, and round
logits        on fixed prompts, relative to the largest logit
perplexity    on the first windows of each protocol of the run, relative
size          file bytes against bits per parameter times parameters, relative
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faqbench.config import UserError
from faqbench.foreign import read_json
from faqbench.stages import find_damage

# Of weights, logits and perplexity, by the coarsest dtype that a weight passes through on its way.
_TOLERANCES = {"float32": (1e-6, 1e-5, 1e-4), "float16": (2e-3, 1e-2, 1e-3), "bfloat16": (1e-2, 5e-2, 5e-3)}
_MOST_EXTRA_BYTES = 0.01


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison.

    Attributes:
        name: of what is compared.
        passed: whether it is within its tolerance.
        largest: the largest difference, relative.
        tolerance: that it may have.
        where: it was found.
    """

    name: str
    passed: bool
    largest: float
    tolerance: float
    where: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found.

    Attributes:
        run_id: that the folder was exported from.
        loader: what loaded it, in words.
        checks: all comparisons.
        n_equal: linears that are equal to the bit when loaded.
        n_linears: all of them.
    """

    run_id: str
    loader: str
    checks: tuple[Check, ...]
    n_equal: int
    n_linears: int

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)


def verify_folder(folder: Path) -> Verification:
    """Verify an exported folder in a process of its own.

    Raises:
        UserError: for a folder that is no export, is damaged, or cannot be loaded.
    """
    try:
        facts = read_json(folder / "faqbench" / "facts.json", 64)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} was not written by `faqbench export`: faqbench/facts.json cannot be read ({error})."
        ) from error
    damage = find_damage(folder, afresh=True)
    if damage is not None:
        raise UserError(f"{folder} is not what was exported: {damage}.")
    return judge(facts, _examined(folder))


def judge(facts: Mapping[str, Any], findings: Mapping[str, Any]) -> Verification:
    """Judge what `plain.examine` found in a folder.

    Args:
        facts: the folder's facts.json.
        findings: by `plain.examine`.
    """
    return Verification(
        run_id=facts["run_id"],
        loader=findings["loader"],
        checks=tuple(_checks(facts, findings)),
        n_equal=sum(difference == 0 for difference in findings["loaded"].values()),
        n_linears=len(findings["loaded"]),
    )


def _examined(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "faqbench.export.plain", str(folder.absolute()), str(result)]
        done = subprocess.run(  # noqa: S603  our own interpreter and our own module
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
            raise UserError(f"{folder} could not be loaded: {last}.")
        findings: dict[str, Any] = json.loads(result.read_text())
        return findings


def _checks(facts: Mapping[str, Any], findings: Mapping[str, Any]) -> list[Check]:
    passed_through = {facts["dtype"]}
    if facts["format"] == "compressed-tensors":  # whose library multiplies in the dtype of the scales
        passed_through |= {grid["scale_dtype"] for grid in facts["grids"].values()}
    weights, logits, perplexity = max(_TOLERANCES[dtype] for dtype in passed_through)
    expected = facts["bits_per_parameter"] * facts["n_parameters"] / 8
    ratios = {name: abs(p["found"] / p["measured"] - 1) for name, p in findings["perplexities"].items()}
    return [
        *([_check("stored", findings["stored"], 0.0)] if findings["stored"] else []),
        _check("loaded", findings["loaded"], weights),
        _check("logits", findings["logits"], logits),
        *([_check("perplexity", ratios, perplexity)] if ratios else []),
        _check("size", {"files": abs(findings["n_bytes"] / expected - 1)}, _MOST_EXTRA_BYTES),
    ]


def _check(name: str, differences: Mapping[str, float], tolerance: float) -> Check:
    where = max(differences, key=lambda place: differences[place])
    largest = differences[where]
    passed = all(difference <= tolerance for difference in differences.values())  # NaN is not
    return Check(name=name, passed=passed, largest=largest, tolerance=tolerance, where=where)
