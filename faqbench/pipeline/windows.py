"""The cached stage that tokenises a protocol's text: the items that an evaluation scores.

    windows.npy    int32 [n_windows, seq_len]
    facts.json     the other fields of `ProtocolTokens`

Texts of the hub have no version that is known without asking it; their protocols are tokenised anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from faqbench.config import Experiment
from faqbench.evaluation import ProtocolTokens, protocol_tokens, resolve_protocol
from faqbench.models import check_ids
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import windows_key
from faqbench.stages import Progress, StageCache

_FACTS = (
    "n_tokens_total",
    "fingerprint",
    "stream_fingerprint",
    "verified",
    "warnings",
    "n_special",
)


def protocol_windows(
    name: str, experiment: Experiment, model: CellModel, cache: StageCache, progress: Progress
) -> ProtocolTokens:
    """Return the windows of a protocol.

    Raises:
        UserError: as `protocol_tokens` does, and for tokens that the model does not know.
    """
    protocol = resolve_protocol(name, experiment)
    key = windows_key(experiment, model.section, name)
    if key is None:
        return _known(protocol_tokens(protocol, model.tokenizer, experiment, progress), model)

    def build(folder: Path) -> None:
        found = protocol_tokens(protocol, model.tokenizer, experiment, progress)
        np.save(folder / "windows.npy", found.tokens.numpy().astype("<i4"), allow_pickle=False)
        facts = {field: getattr(found, field) for field in _FACTS}
        (folder / "facts.json").write_text(json.dumps(facts))

    entry = cache.get("windows", key, build, name)
    facts = json.loads((entry.path / "facts.json").read_text())
    tokens = np.load(entry.path / "windows.npy", allow_pickle=False).astype(np.int64)
    windows = ProtocolTokens(
        protocol=protocol,
        tokens=torch.from_numpy(tokens),
        **{**facts, "warnings": tuple(facts["warnings"])},
    )
    return _known(windows, model)


def _known(windows: ProtocolTokens, model: CellModel) -> ProtocolTokens:
    """Return windows all of whose tokens the model knows."""
    what = f"Protocol '{windows.protocol.name}'"
    check_ids(int(windows.tokens.max()), model.facts.vocab_size, model.tokenizer, what)
    return windows
