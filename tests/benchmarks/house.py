"""Numbers of the house: how large it is, what imports what, and how far a command walks through it.

    python tests/benchmarks/house.py

Sizes and imports are read from the source, imports for type checking included. The two walks are taken
from one run of a tiny cell: the files whose functions are under way when the first stage begins, and how
often `experiment`, handed on from function to function below `pipeline.run`, comes back to a file that it
had left (each way from one function to another counted once).
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "faqbench"
WANTED = {
    "lines": "24,500", "files": "190", "lines of the median file": "140 or more", "import cycles": "0",
    "tracked files": "under 600", "functions over 60 lines": "0",
    "uses of what others keep to themselves": "0", "files from argv to the first stage": "5",
    "returns of experiment below pipeline.run": "8",
}  # fmt: skip
CELL = [
    "quant=rtn", "model=tiny-llama", "tracking=none", "limit=1", "evaluation.tasks=[]",
    "evaluation.protocols=[heldout-wiki-512]", "device=cpu",
]  # fmt: skip
_PRIVATE = re.compile(r"(hydra|omegaconf|wandb|lm_eval)\._[a-z]|\b(run|OmegaConf)\._[a-z]\w*\(")


def modules() -> dict[str, Path]:
    """Return the package's modules by name."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[parts.index("hydra_plugins") :] if "hydra_plugins" in parts else parts
        named[".".join(parts).removesuffix(".__init__")] = path
    return named


def imports(named: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return which modules each module imports, wherever in it; a package's names are its modules' own."""
    graph: dict[str, set[str]] = {name: set() for name in named}
    for name, path in named.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                asked = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {one if one in named else node.module for one in asked}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
        graph[name] = (graph[name] & named.keys()) - {name}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for name in graph[ahead.pop()] - seen:
                seen.add(name)
                ahead.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    tied = {name: frozenset(n for n in reach[name] if name in reach[n]) for name in graph}
    return [sorted(group) for group in set(tied.values()) if group]


def long_functions(named: Mapping[str, Path], limit: int = 60) -> list[str]:
    """Return the functions of more lines than that, with their number of lines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{name}.{node.name} {node.end_lineno - node.lineno + 1}"
        for name, path in named.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and (node.end_lineno or 0) - node.lineno >= limit
    ]


def private_uses(named: Mapping[str, Path]) -> list[str]:
    """Return the lines that reach for what Hydra, omegaconf, W&B or lm-eval mark as their own."""
    return [
        f"{name}:{number} {line.strip()}"
        for name, path in named.items()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _PRIVATE.search(line)
    ]


class Walk:
    """Watches one cell as it runs."""

    def __init__(self) -> None:
        self.first_stage: list[str] = []
        self.visits: list[str] = []
        self._ways: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take note of a call, as `sys.setprofile` tells of it."""
        file = _file_of(frame)
        if event != "call" or file is None:
            return
        if not self.first_stage and frame.f_code.co_name == "walk" and file == "pipeline/cell.py":
            self.first_stage = list(dict.fromkeys(_files_above(frame)))[::-1]
        if "experiment" in frame.f_code.co_varnames[: frame.f_code.co_argcount]:
            above = [f for f in _frames(frame.f_back) if _file_of(f) is not None]
            if any(_place(f) == "pipeline/run.py:run" for f in above):
                way = (_place(above[0]), _place(frame))
                if way not in self._ways:
                    self._ways.add(way)
                    self.visits += [str(_file_of(above[0])), file]

    @property
    def returns(self) -> int:
        """How often a file came up again after another one."""
        seen: set[str] = set()
        number, last = 0, None
        for file in self.visits:
            number += file != last and file in seen
            seen.add(file)
            last = file
        return number


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _file_of(frame: FrameType) -> str | None:
    path = frame.f_code.co_filename
    return path[len(str(PACKAGE)) + 1 :] if path.startswith(str(PACKAGE)) else None


def _place(frame: FrameType) -> str:
    return f"{_file_of(frame)}:{frame.f_code.co_name}"


def _files_above(frame: FrameType) -> list[str]:
    return [file for f in _frames(frame.f_back) if (file := _file_of(f)) is not None]


def walk_of_a_cell() -> Walk:
    """Run one tiny cell in a folder of its own, and watch it."""
    sys.argv[1:] = CELL
    walk = Walk()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        from faqbench.__main__ import main

        sys.setprofile(walk)
        try:
            main()
        except SystemExit as end:
            assert end.code == 0, f"the cell ended with code {end.code}"
        finally:
            sys.setprofile(None)
            os.chdir(before)
    return walk


def main() -> None:
    """Print the numbers beside those that are wanted."""
    named = modules()
    graph = imports(named)
    lines = {name: len(path.read_text().splitlines()) for name, path in named.items()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    tied, long, private = cycles(graph), long_functions(named), private_uses(named)
    walk = walk_of_a_cell()
    numbers = {
        "lines": f"{sum(lines.values()):,}",
        "files": str(len(named)),
        "lines of the median file": f"{median(lines.values()):g}",
        "import cycles": f"{len(tied)}  {'; '.join(' - '.join(group) for group in tied)}",
        "tracked files": str(len(tracked)),
        "functions over 60 lines": f"{len(long)}  {', '.join(long)}",
        "uses of what others keep to themselves": f"{len(private)}  {'; '.join(private)}",
        "files from argv to the first stage": f"{len(walk.first_stage)}  {', '.join(walk.first_stage)}",
        "returns of experiment below pipeline.run": f"{walk.returns}",
    }
    for name, number in numbers.items():
        print(f"{name} (wanted: {WANTED[name]}): {number}")


if __name__ == "__main__":
    main()
