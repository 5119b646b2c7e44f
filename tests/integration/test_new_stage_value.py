"""How to add a stage value, as README tells it, followed to the letter: a function, a row, a yaml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import faqbench
from faqbench.config import run_id

from .conftest import Forked, Forks, Workplace

ROOT = Path(faqbench.__file__).parents[1]

FUNCTION = '''"""Rounding on the range that the Gram matrix likes best, whole or shrunken: a toy."""

import torch

from faqbench.quantization.grid import Rounded, pack_codes, round_nearest


def round_by_choice(weight, known, grid, quant, limit):
    """Round [rows, in_features] to nearest, every group clamped or not, whichever errs less."""
    largest = weight.view(len(weight), -1, grid.group_width(weight.shape[1])).abs().amax(dim=-1)
    options = [round_nearest(weight, known, grid, quant, largest * s) for s in quant.choice.shrinks]

    def loss(option: Rounded) -> float:
        error = weight - pack_codes(option.codes, option.parameters, grid, None).dequantize()
        return float(torch.einsum("ri,ij,rj->", error, known.gram, error))

    return min(options, key=loss)
'''

ROW = """    StageValue(
        name="choice",
        label="Choice",
        reads=frozenset({Reads.GRAM}),
        options={"choice.shrinks": (1.0, 0.9)},
        call="faqbench.quantization.choice:round_by_choice",
    ),
"""

SECTION = '''class ChoiceSection(Section):
    """Ranges tried."""

    shrinks: tuple[float, ...]


'''

YAML = """# A toy: the better of two ranges.
defaults: [_stages, _self_]
name: choice
round: choice
"""

# In a process that has imported all but the house's own modules.
PRELUDE = """
import sys
from hydra.core.singleton import Singleton
ours = ("faqbench", "faqbench_sweeper")
for name in [name for name in sys.modules if not set(ours).isdisjoint(name.split("."))]:
    del sys.modules[name]
sys.path[:] = [place for place in sys.path if not place.endswith("plugins")]
sys.path.insert(0, {house!r})
import faqbench.cli.composing
Singleton.set_state(Singleton.get_state())  # Hydra looks for plug-ins anew
"""

COMMANDS = """
from faqbench.cli import main
for line in {lines!r}:
    code = main(line)
    assert code == 0, (code, line)
sys.exit(0)
"""

COMPOSED = """
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import run_id
print(*[run_id(e) for e in compose_cells(parse_flags({line!r})).experiments])
sys.exit(0)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its yamls, with the toy added."""
    house = tmp_path_factory.mktemp("new") / "house"
    for name in ("faqbench", "conf"):
        shutil.copytree(ROOT / name, house / name)  # what was compiled, too
    (house / "faqbench" / "quantization" / "choice.py").write_text(FUNCTION)
    add(
        house / "faqbench" / "config" / "method.py",
        before='    StageValue(\n        name="gptq",',
        text=ROW,
    )
    (house / "conf" / "quant" / "choice.yaml").write_text(YAML)
    # The toy has an option of its own, so that its section is one more part of the configuration.
    experiment = house / "faqbench" / "config" / "experiment.py"
    add(experiment, before="    trace_windows:", text="    choice: ChoiceSection\n")
    add(experiment, before="class LinearOverride", text=SECTION)
    stages = house / "conf" / "quant" / "_stages.yaml"
    add(stages, before="trace_windows:", text="choice:\n  shrinks: [1.0, 0.9]\n\n")
    return house


def add(path: Path, *, before: str, text: str) -> None:
    whole = path.read_text()
    assert whole.count(before) == 1
    path.write_text(whole.replace(before, text + before))


def run(forks: Forks, place: Workplace, house: Path, code: str) -> Forked:
    return forks.run(place, prelude=PRELUDE.format(house=str(house)) + code)


def test_a_new_value_is_calibrated_quantized_evaluated_planned_and_reported(
    forks: Forks, workplace: Workplace, house: Path
) -> None:
    cells = ["-m", *workplace.cell, "quant=choice,rtn", "scenario=matched,shuffled-tokens"]
    lines = [cells, ["plan", *cells], ["report", "name=toy"]]
    done = run(forks, workplace, house, COMMANDS.format(lines=lines))
    assert done.wait() == 0, done.output
    records = {
        (r["config"]["quant"]["name"], r["config"]["scenario"]["name"]): r
        for r in (json.loads(p.read_text()) for p in workplace.runs.glob("*/record.json"))
    }
    matched, shuffled = records["choice", "matched"], records["choice", "shuffled-tokens"]
    assert matched["fingerprints"]["calibration"] != shuffled["fingerprints"]["calibration"]
    assert "statistics" in matched["stages"]
    # RTN reads no calibration, so its two cells are one; the toy's are two, in the report as well.
    assert len(records) == 3
    rows = (workplace.reports / "toy" / "report.md").read_text()
    assert rows.count("| Choice") + rows.count("| choice") >= 2


def test_a_new_section_of_options_leaves_the_run_ids_of_all_other_methods_as_they_were(
    forks: Forks, workplace: Workplace, house: Path, compose
) -> None:
    quants = ("fp", "rtn", "awq", "faq", "gptq", "qep", "loaq")
    common = ["model=tiny-llama", "dtype=float32"]
    line = ["-m", *common, f"quant={','.join(quants)}"]
    done = run(forks, workplace, house, COMPOSED.format(line=line))
    assert done.wait() == 0, done.output
    assert done.output.split() == [run_id(compose(*common, f"quant={q}")) for q in quants]
