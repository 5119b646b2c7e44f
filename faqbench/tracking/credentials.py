"""Whether W&B has credentials here, found without a network call, a prompt or W&B itself.

W&B looks for a key in WANDB_API_KEY, then in the netrc file; WANDB_IDENTITY_TOKEN_FILE and a
settings file can take their place. Only whether there is one is asked; no key is ever read into a
variable that could be logged.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def has_credentials() -> bool:
    """Return whether W&B would find credentials without asking."""
    if any(os.environ.get(name) for name in _KEY_VARIABLES):
        return True
    hosts = {*_HOSTS, *_own_hosts()}
    for path in _netrc_files():
        try:
            entries = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if any(host in entries.hosts for host in hosts):
            return True
    return False


def _own_hosts() -> set[str]:
    """Return the hosts of a self-hosted W&B that the environment or W&B's settings file names."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        settings.read(Path(folder) / "settings")
    urls = [os.environ.get("WANDB_BASE_URL", "")]
    urls += [settings[section].get("base_url", "") for section in settings.sections()]
    return {urlsplit(url).netloc for url in urls} - {""}


def _netrc_files() -> list[Path]:
    chosen, home = os.environ.get("NETRC"), Path.home()
    return [Path(chosen or home / name).expanduser() for name in (".netrc", "_netrc")]
