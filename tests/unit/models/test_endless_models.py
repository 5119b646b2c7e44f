"""Models without end: sizes that nothing holds, files that nobody finishes; refused before all work."""

import os

import pytest

from faqbench.cli import main


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.random.num_hidden_layers=1000000", "is more than the 10000 blocks that are built"),
        ("model.random.hidden_size=1000000000", "B in float32, and this machine has"),
        ("model.random.vocab_size=1000000000000", "B in float32, and this machine has"),
    ],
)
def test_an_absurd_size_is_refused_before_the_model_is_built(
    setting, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    assert main(["model=tiny-llama", "quant=rtn", "tracking=none", setting]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("faqbench: ")]
    assert line.startswith("faqbench: model=tiny-llama could not be loaded: ") and sentence in line


def test_a_pipe_in_a_models_folder_is_refused_and_not_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model" / "tokenizer.json")
    cell = ["model=tiny-llama", "model.source=path", f"model.path={tmp_path}/model"]
    assert main([*cell, "quant=rtn", "tracking=none"]) == 2
    assert "tokenizer.json is neither a file nor a folder" in capsys.readouterr().err
