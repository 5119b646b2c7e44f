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

from faqbench.config import UserError

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
                info = HfApi().repo_info(repo_id, revision=revision, repo_type=kind, timeout=_PROBE_SECONDS)
                return info.sha
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

    patterns = ["*.json", "model*.safetensors"]
    snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])


def check_push(repo_id: str) -> None:
    """Refuse to upload where it cannot work, before there is anything to upload.

    Raises:
        UserError: without a token, or without a hub that answers.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"push={repo_id} is no name of a repository of the hub: {error}") from error
    if get_token() is None:
        raise UserError(
            f"push={repo_id} needs a token of the Hugging Face hub, and there is none on this machine: run "
            "`hf auth login`, or leave push out."
        )
    if not hub_answers():
        raise UserError(
            f"push={repo_id} needs the Hugging Face hub, which does not answer; leave push out, and push "
            "the folder another day with the same command."
        )


def push_folder(folder: Path, repo_id: str, message: str) -> str:
    """Upload a folder, what is there already left out, and return its address.

    A repository that is new is private.

    Raises:
        UserError: when the hub refuses it.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repo_id, private=True, exist_ok=True)
        done = hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except hub_errors() as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"{folder} is written, but the hub did not take it as {repo_id} ({first}); the same command "
            "tries again."
        ) from error
    return str(done.commit_url)


def local_snapshot(repo_id: str, revision: str | None, file: str) -> Path | None:
    """Return the local copy of a model's revision that holds a file; its name is the commit."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached_file = try_to_load_from_cache(repo_id, file, revision=revision)
    except HFValidationError:
        return None
    return Path(cached_file).parent if isinstance(cached_file, str) else None


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
