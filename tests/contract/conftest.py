"""What the contract tests share: one thread, and a cell that needs no asset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep toy tensors on one thread: several would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "toy.txt"
    texts = [f"Text {i}. " + "the weight of a group, " * (3 + i % 5) for i in range(60)]
    path.write_text("\n\n".join(texts))
    return str(path)


@pytest.fixture
def toy_cell(text_file: str, tmp_path: object) -> list[str]:
    """Overrides of a cell that runs in a second, on no asset at all."""
    return [
        "tracking=none",
        "evaluation=none",
        "dtype=float32",
        "calibration.n_samples=2",
        "calibration.seq_len=32",
        f"calibration.domain={text_file}",
        f"data.wikitext2_path={text_file}",
        f"paths.runs={tmp_path}/runs",
        f"paths.reports={tmp_path}/reports",
    ]
