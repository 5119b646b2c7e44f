"""Where a model comes from: equal keys for equal weights, known without loading them, named in records."""

import json
import os
from dataclasses import replace

import pytest
from toy_runs import write_toy_run

from faqbench import sources
from faqbench.assets import packaged_data_key
from faqbench.config import UserError
from faqbench.models import model_config, pinned, tokenizer_source, weights_source

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def folder(section, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    return section("tiny-llama").model_copy(update={"source": "path", "path": str(tmp_path)})


@pytest.fixture
def hub(section, tmp_path, monkeypatch):
    """A local copy of a hub's repository, in the layout of its own client."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--toy--model"
    for commit in COMMITS:
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({"hidden_size": len(commit)}))
    (repository / "refs").mkdir()

    def at(commit, revision=None):
        (repository / "refs" / "main").write_text(commit)
        changed = {"source": "hub", "hub_id": "toy/model", "revision": revision, "tokenizer": None}
        return section("tiny-llama").model_copy(update=changed)

    return at


def test_random_models_are_known_by_their_settings(section):
    one, other = section("tiny-llama"), section("tiny-qwen2")
    assert weights_source(one) == weights_source(section("tiny-llama")) != weights_source(other)


def test_a_source_names_neither_the_model_nor_its_notes(section):
    renamed = section("tiny-llama").model_copy(update={"name": "other", "notes": "x"})
    assert weights_source(renamed) == weights_source(section("tiny-llama"))


def test_a_folder_is_known_by_its_files_wherever_it_lies(folder, tmp_path):
    before = weights_source(folder)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert weights_source(folder) is None
    found = weights_source(folder.model_copy(update={"path": str(moved)}))
    assert [f[:2] for f in found["files"]] == [f[:2] for f in before["files"]]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_changed_is_another_source(folder, tmp_path, file):
    before = weights_source(folder)
    stat = (tmp_path / file).stat()
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes().swapcase())
    os.utime(tmp_path / file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights_source(folder) != before


def test_the_tokenizers_files_do_not_count_for_the_weights(folder, tmp_path):
    weights = weights_source(folder)
    tokenizer = tokenizer_source(folder.model_copy(update={"tokenizer": None}))
    (tmp_path / "tokenizer.json").write_text('{"other": 1}')
    assert weights_source(folder) == weights
    assert tokenizer_source(folder.model_copy(update={"tokenizer": None})) != tokenizer


def test_code_that_comes_with_a_checkpoint_counts_where_it_runs(folder, tmp_path):
    before = (weights_source(folder), weights_source(folder.model_copy(update={"trust_remote_code": True})))
    (tmp_path / "modeling.py").write_text("x = 1")
    after = (weights_source(folder), weights_source(folder.model_copy(update={"trust_remote_code": True})))
    assert after[0] == before[0] and after[1] != before[1]


def test_a_hub_model_is_known_by_its_commit(hub):
    first, second = weights_source(hub(COMMITS[0])), weights_source(hub(COMMITS[1]))
    assert first["commit"] == COMMITS[0] and second["commit"] == COMMITS[1]


def test_a_local_copy_of_the_hub_that_was_written_to_is_another_source(hub, tmp_path):
    before = weights_source(hub(COMMITS[0]))
    (tmp_path / f"models--toy--model/snapshots/{COMMITS[0]}/model.safetensors").write_bytes(b"x")
    assert weights_source(hub(COMMITS[0])) != before


def test_an_index_and_all_files_that_it_names_count_and_no_others(folder, tmp_path):
    def write(name, content):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    (tmp_path / "model.safetensors").unlink()
    names = ["one.safetensors", "part/two.safetensors"]
    write(
        "model.safetensors.index.json",
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))}).encode(),
    )
    for name in names:
        write(name, b"1")
    sources = [weights_source(folder)]
    for name in names:
        write(name, b"22")
        sources.append(weights_source(folder))
    assert len({json.dumps(s) for s in sources}) == 3
    write("model-00001-of-00002.safetensors", b"an older set of shards")
    assert weights_source(folder) == sources[-1]


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b", "C:\\x"])
def test_an_index_that_names_a_file_outside_its_folder_is_refused(folder, tmp_path, name):
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json names a file outside its folder, "):
        weights_source(folder)


def test_a_revision_is_pinned_to_the_commit_of_the_local_copy(hub):
    assert pinned(hub(COMMITS[1])).revision == COMMITS[1]
    assert pinned(hub(COMMITS[1], revision=COMMITS[0])).revision == COMMITS[0]


def test_a_hub_model_that_is_not_here_has_no_source_yet(section):
    absent = {"source": "hub", "hub_id": "no/such-model", "tokenizer": None}
    absent = section("tiny-llama").model_copy(update=absent)
    assert weights_source(absent) is tokenizer_source(absent) is model_config(absent) is None
    assert pinned(absent) == absent


def test_the_shape_is_read_without_the_weights(section, folder, hub):
    assert model_config(section("tiny-llama"))["hidden_size"] == 64
    assert model_config(folder)["hidden_size"] == 64
    assert model_config(hub(COMMITS[0]))["hidden_size"] == 40


def test_the_tokenizer_of_bytes_needs_no_files(section):
    assert tokenizer_source(section("tiny-llama")) == {"bytes": 1}


def test_a_branch_of_the_hub_that_moved_is_another_run(compose, monkeypatch, tmp_path):
    experiment = compose("model=qwen3-8b", "quant=fp", "evaluation=none")
    monkeypatch.setattr(sources, "resolve_commit", lambda *_: "b" * 40)
    name = f"model.hub_id={experiment.model.hub_id}"
    record = write_toy_run(tmp_path, "fp")
    data = {"packaged data": {"asset": json.loads(json.dumps(packaged_data_key()))}}

    def judged(extra):
        return sources.why_not_reusable(replace(record, extra=extra), experiment)

    assert judged({"sources": data | {name: {"commit": "b" * 40}}}) is None
    moved = judged({"sources": data | {name: {"commit": "a" * 40}}})
    assert moved == f"{name} is at commit bbbbbbbbbb now, not aaaaaaaaaa"
    assert judged({}) == f"its record does not tell what {name} held"
