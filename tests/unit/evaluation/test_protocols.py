from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from faqbench.config import UserError
from faqbench.evaluation import protocol_passages, protocol_tokens, protocols, resolve_protocol
from faqbench.stages import PlainProgress


def test_a_text_file_becomes_windows_without_its_tail(
    tmp_path: Path, byte_tokenizer: Any, experiment: Any, progress: PlainProgress
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("é\r\nabcd".encode() * 9)
    made = experiment(wikitext2_path=path)
    tokens = protocol_tokens(resolve_protocol("wikitext2-16", made.data), byte_tokenizer, made, progress)
    assert tokens.tokens.shape == (4, 16)
    assert tokens.n_tokens_total == 72
    assert byte_tokenizer.decode(tokens.tokens.flatten()) == "é\r\nabcd" * 8
    assert tokens.tokens.dtype == torch.int64


def test_a_limit_keeps_the_first_windows_and_changes_the_fingerprint(
    tmp_path: Path, byte_tokenizer: Any, experiment: Any, progress: PlainProgress
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some words. " * 20)
    both = [
        protocol_tokens(
            resolve_protocol("wikitext2-8", (e := experiment(wikitext2_path=path, limit=limit)).data),
            byte_tokenizer,
            e,
            progress,
        )
        for limit in (None, 3)
    ]
    assert torch.equal(both[0].tokens[:3], both[1].tokens)
    assert both[0].fingerprint != both[1].fingerprint
    assert both[0].stream_fingerprint == both[1].stream_fingerprint


def test_an_unknown_tokenizer_is_unverified_with_a_warning(
    tmp_path: Path, byte_tokenizer: Any, experiment: Any, progress: PlainProgress
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some words. " * 20)
    made = experiment(wikitext2_path=path)
    tokens = protocol_tokens(resolve_protocol("wikitext2-8", made.data), byte_tokenizer, made, progress)
    assert not tokens.verified
    assert "unverified" in tokens.warnings[0]


def test_a_known_tokenizer_with_another_text_is_an_error_that_says_which(
    tmp_path: Path,
    byte_tokenizer: Any,
    experiment: Any,
    progress: PlainProgress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some words. " * 20)
    made = experiment(wikitext2_path=path)
    protocol = resolve_protocol("wikitext2-8", made.data)
    tokens = protocol_tokens(protocol, byte_tokenizer, made, progress)
    entry = protocols.expected_entry(tokens, byte_tokenizer, "bytes")
    known = {"wikitext2": {entry["vocabulary"]: entry}}
    monkeypatch.setattr(protocols, "_expected_tokens", lambda: known)
    assert protocol_tokens(protocol, byte_tokenizer, made, progress).verified
    path.write_text("some words, " * 20)
    with pytest.raises(UserError, match=r"'wikitext2-8' is not what it is called: the bytes token"):
        protocol_tokens(protocol, byte_tokenizer, made, progress)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"has no text.*text\.txt is empty"),
        (b" \n\n ", r"has no text"),
        (b"short", r"needs 16 tokens for one window, but its text has only 5"),
        (b"\xff\xfe" * 20, r"is not UTF-8"),
    ],
)
def test_a_bad_file_is_one_sentence(
    content: bytes,
    sentence: str,
    tmp_path: Path,
    byte_tokenizer: Any,
    experiment: Any,
    progress: PlainProgress,
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    made = experiment(wikitext2_path=path)
    with pytest.raises(UserError, match=sentence):
        protocol_tokens(resolve_protocol("wikitext2-16", made.data), byte_tokenizer, made, progress)


def test_a_missing_file_is_found_before_anything_is_loaded(tmp_path: Path, experiment: Any) -> None:
    made = experiment(wikitext2_path=tmp_path / "no.txt")
    with pytest.raises(UserError, match=r"data\.wikitext2_path=.*no\.txt is not a file"):
        resolve_protocol("wikitext2-512", made.data)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wikitxt2-2048", r"not a protocol.*Did you mean 'wikitext2-2048'"),
        ("wikitext2", r"not a protocol.*Did you mean 'wikitext2-"),
        ("c4-new-512", r"not a protocol.*c4-new-2048"),
        ("heldout-wikki-512", r"names the domain 'wikki'.*Did you mean 'wiki'"),
        ("selection-wikki-512", r"names the domain 'wikki'.*Did you mean 'wiki'"),
        ("selektion-wiki-512", r"not a protocol.*selection-<domain>-<len>"),
        ("wikitext2-4", r"windows of 4 tokens; the shortest allowed is 8"),
        ("", r"not a protocol"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_spelling(
    name: str, sentence: str, experiment: Any
) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve_protocol(name, experiment().data)


def test_a_protocol_of_the_hub_fails_without_waiting_and_says_what_to_do(
    byte_tokenizer: Any, experiment: Any, progress: PlainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment()
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(UserError, match=r"hub, which could not be reached; set data\.wikitext2_path"):
        protocol_tokens(resolve_protocol("wikitext2-8", made.data), byte_tokenizer, made, progress)
    with pytest.raises(UserError, match=r"allenai/c4 from the Hugging Face hub"):
        protocol_tokens(resolve_protocol("c4-new-2048", made.data), byte_tokenizer, made, progress)
    assert sum(waits) < 20


def test_every_window_length_of_a_text_has_the_same_stream(experiment: Any) -> None:
    names = ["wikitext2-512", "wikitext2-2048", "heldout-code-java-128"]
    streams = [resolve_protocol(name, experiment().data).stream for name in names]
    assert streams == ["wikitext2", "wikitext2", "heldout-code-java"]


def test_expected_tokens_are_complete_entries() -> None:
    path = Path(protocols.__file__).with_name("expected_tokens.yaml")
    for entries in yaml.safe_load(path.read_text()).values():
        for entry in entries:
            assert set(entry) == {"tokenizer", "vocabulary", "n_tokens", "sha256"}
            assert len(entry["vocabulary"]) == len(entry["sha256"]) == 64


@pytest.mark.packaged
@pytest.mark.parametrize(
    "stream", ["heldout-wiki", "heldout-code-java", "heldout-medicine", "selection-wiki"]
)
def test_a_packaged_domain_has_its_expected_tokens(
    stream: str, experiment: Any, progress: PlainProgress
) -> None:
    from transformers import AutoTokenizer

    from faqbench.assets import packaged_model

    tokenizer = AutoTokenizer.from_pretrained(packaged_model("smollm2-135m", progress))
    made = experiment(limit=2)
    protocol = resolve_protocol(f"{stream}-64", made.data)
    tokens = protocol_tokens(protocol, tokenizer, made, progress)
    assert tokens.verified
    assert tokens.tokens.shape == (2, 64)


@pytest.mark.packaged
def test_selection_protocols_share_no_passage_with_held_out_ones(
    experiment: Any, progress: PlainProgress
) -> None:
    parts = [
        protocol_passages(resolve_protocol(f"{part}-wiki-64", experiment().data), experiment(), progress)
        for part in ("heldout", "selection")
    ]
    assert all(parts)
    assert not set(parts[0]) & set(parts[1])
