"""Asking the Hugging Face hub once, quickly, before a library asks it six times.

Without a network the hub's client retries each request for 23 seconds. `hub_or_local_copies` probes
once; when nothing answers, the libraries look in their local copies only, and fail at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

_PROBE_SECONDS = 4.0
_PROBE_KEPT_SECONDS = 60.0
_last_probe: list[tuple[float, bool]] = []


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


def resolve_commit(
    repo_id: str, revision: str | None, kind: Literal["model", "dataset"] = "model"
) -> str | None:
    """Return the commit that a revision of a model or data set names.

    It is the hub's answer; where the hub does not give one, that of a model's local copy, or None.
    """
    with hub_or_local_copies() as online:
        if online:
            from huggingface_hub import HfApi

            try:
                found = HfApi().repo_info(
                    repo_id, revision=revision, repo_type=kind, timeout=_PROBE_SECONDS
                )
                return found.sha
            except hub_errors():
                pass  # gated, misspelt or gone: loading will say which
    snapshot = local_snapshot(repo_id, revision, "config.json") if kind == "model" else None
    return None if snapshot is None else snapshot.name


def bring_config(repo_id: str, revision: str | None) -> None:
    """Have a model's config.json in the local copy, and nothing else of it yet."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(repo_id, "config.json", revision=revision)


def bring_weights(repo_id: str, revision: str | None) -> None:
    """Have a model's weights, and what describes them, in the local copy."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors"]
    snapshot_download(repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"])


def local_snapshot(repo_id: str, revision: str | None, file: str) -> Path | None:
    """Return the local copy of a model's revision that holds a file; its name is the commit."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo_id, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def hub_answers(timeout_seconds: float = _PROBE_SECONDS) -> bool:
    """Say whether the hub answers at all."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=timeout_seconds)
    except httpx.HTTPError:
        return False
    return True


def _hub_answers() -> bool:
    """Ask the hub, and believe the answer for a minute."""
    if not _last_probe or time.monotonic() - _last_probe[0][0] > _PROBE_KEPT_SECONDS:
        _last_probe[:] = [(time.monotonic(), hub_answers())]
    return _last_probe[0][1]
