"""Asking the Hugging Face hub once, quickly, before a library asks it six times.

Without a network the hub's client retries each request for 23 seconds. `hub_or_local_copies` probes
once; when nothing answers, the libraries look in their local copies only, and fail at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PROBE_SECONDS = 4.0


@contextmanager
def hub_or_local_copies() -> Iterator[bool]:
    """Yield whether the hub answers; while it does not, its libraries stay offline in the block."""
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _hub_answers():
        yield not constants.HF_HUB_OFFLINE
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's libraries raise for a lack of network, of access or of the data set."""
    import httpx
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, httpx.HTTPError, HfHubHTTPError, DatasetsError)


def _hub_answers() -> bool:
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except httpx.HTTPError:
        return False
    return True
