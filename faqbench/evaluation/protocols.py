r"""Names of perplexity protocols, the texts they stand for, and the windows of tokens that come of these.

A perplexity is a number of its protocol: Llama-2-7B is 5.47, 5.12 or 8.71 "on WikiText" depending
on the window and on who divides by what. So a name fixes the text, how it is joined and the window:

    wikitext2-<len>          wikitext-2-raw-v1 test rows joined with "\n\n"
    c4-new-2048              first 1100 C4 validation documents joined with " ", 256 windows of 2048
    heldout-<domain>-<len>   the evaluation part of a packaged domain, texts joined with "\n\n"
    selection-<domain>-<len> its selection part: for choosing a recipe or an option, so that the
                             evaluation part has no share in what it later judges

and all of them: tokenised once, no special tokens, non-overlapping windows, the tail dropped, every
token but the first of a window scored, mean negative log-likelihood, exp. For a model that needs a BOS
token, `evaluation.add_bos` makes it the first token of every window; it is part of the run's identity.

Differs from the reference (GPTQ's and AWQ's scripts): they let the tokenizer put its one BOS before
the whole text, which shifts every later window by a token; here no tokenizer's default, which
changes between versions, can move a window.

A drifted tokenizer, a normalised line end or a file that is not quite the test split change every
number of a protocol without a sign. `expected_tokens.yaml` therefore holds, per text and tokenizer,
the number of tokens of the whole stream and its sha256 (int32, little endian). A tokenizer is known
by the hash of its vocabulary; one that is not listed is used all the same, and marked unverified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from faqbench import corpora, formatting
from faqbench.config import Experiment, UserError, did_you_mean
from faqbench.config.experiment import DataSection
from faqbench.hub import hub_errors, hub_or_local_copies
from faqbench.models import bos_of, encode
from faqbench.stages import Progress, hash_file, hash_json, hash_text

PROTOCOL_VERSION = 1
_C4_WINDOW = 2048
_SHORTEST_WINDOW = 8
_WIKITEXT2 = re.compile(r"wikitext2-([1-9]\d*)")
_PACKAGED = re.compile(r"(heldout|selection)-(.+)-([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A perplexity protocol.

    Attributes:
        name: as the user wrote it; the `task` of its metrics.
        corpus: the kind of text.
        domain: the packaged domain of a held-out or selection protocol, null for the others.
        seq_len: tokens of a window, one more than it scores.
        version: changes when the same name would give other tokens.
    """

    name: str
    corpus: Literal["wikitext2", "c4-new", "heldout", "selection"]
    domain: str | None
    seq_len: int
    version: int = PROTOCOL_VERSION

    @property
    def stream(self) -> str:
        """The name of the token stream that the windows are cut from, whatever their length."""
        return self.corpus if self.domain is None else f"{self.corpus}-{self.domain}"


def resolve_protocol(name: str, data: DataSection) -> Protocol:
    """Return the protocol with this name, after all checks that need no loading.

    Args:
        name: of the protocol.
        data: the experiment's `data`, where a local copy of its text may be.

    Raises:
        UserError: for an unknown name or domain, a window that is too short, and a
            `data.wikitext2_path` that is not a file.
    """
    if name == f"c4-new-{_C4_WINDOW}":
        return Protocol(name=name, corpus="c4-new", domain=None, seq_len=_C4_WINDOW)
    if match := _WIKITEXT2.fullmatch(name):
        path = data.wikitext2_path
        if path is not None and not path.is_file():
            raise UserError(f"data.wikitext2_path={path} is not a file.")
        seq_len = _checked_length(name, match[1])
        return Protocol(name=name, corpus="wikitext2", domain=None, seq_len=seq_len)
    if match := _PACKAGED.fullmatch(name):
        corpus: Literal["heldout", "selection"] = "heldout" if match[1] == "heldout" else "selection"
        domain, domains = match[2], corpora.domain_names()
        if domain not in domains:
            raise UserError(
                f"evaluation.protocols: '{name}' names the domain '{domain}', not one of "
                f"{', '.join(sorted(domains))}.{did_you_mean(domain, domains)}"
            )
        seq_len = _checked_length(name, match[3])
        return Protocol(name=name, corpus=corpus, domain=domain, seq_len=seq_len)
    raise UserError(
        f"evaluation.protocols: '{name}' is not a protocol; allowed are wikitext2-<len>, "
        f"c4-new-{_C4_WINDOW}, heldout-<domain>-<len> and selection-<domain>-<len>, as in wikitext2-2048."
        f"{did_you_mean(name, protocol_examples())}"
    )


def protocol_examples() -> list[str]:
    """Return usual names, those that a wrong one is compared with."""
    heldout = [f"heldout-{domain}-512" for domain in corpora.domain_names()]
    return ["wikitext2-2048", "wikitext2-512", f"c4-new-{_C4_WINDOW}", *heldout]


def _checked_length(name: str, digits: str) -> int:
    seq_len = int(digits)
    if seq_len < _SHORTEST_WINDOW:
        raise UserError(
            f"evaluation.protocols: '{name}' asks for windows of {seq_len} tokens; the shortest "
            f"allowed is {_SHORTEST_WINDOW}."
        )
    return seq_len


_JOINED_BY = {"heldout": "\n\n", "selection": "\n\n", "wikitext2": "\n\n", "c4-new": " "}
_MOST_BYTES = 10**9  # of a local file; more is another text, or a sparse file that never ends
_C4_DOCUMENTS = 1100
_C4_FILE = "en/c4-validation.00000-of-00008.json.gz"


def protocol_text(protocol: Protocol, experiment: Experiment, progress: Progress) -> str:
    """Return the protocol's whole text, its passages joined as the protocol says.

    Raises: UserError: when the text is missing, empty or not UTF-8, or when the hub is needed but
        does not answer.
    """
    return _JOINED_BY[protocol.corpus].join(protocol_passages(protocol, experiment, progress))


def protocol_passages(protocol: Protocol, experiment: Experiment, progress: Progress) -> list[str]:
    """Return the documents, texts or rows that a protocol's text is joined from.

    Raises: UserError: as `protocol_text` does.
    """
    match protocol.corpus:
        case "heldout" | "selection":
            assert protocol.domain is not None
            part: corpora.Part = "evaluation" if protocol.corpus == "heldout" else "selection"
            passages = corpora.domain_texts(protocol.domain, part, progress)
            source = f"the {part} part of domain '{protocol.domain}'"
        case "wikitext2":
            path = experiment.data.wikitext2_path
            passages = (
                _hub_wikitext2(protocol) if path is None else _read(path).split(_JOINED_BY[protocol.corpus])
            )
            source = "wikitext-2-raw-v1" if path is None else f"data.wikitext2_path={path}"
        case "c4-new":
            passages = _hub_c4(protocol)
            source = "C4's validation split"
    if not any(passage.strip() for passage in passages):
        raise UserError(f"Protocol '{protocol.name}' has no text: {source} is empty.")
    return passages


def text_source(protocol: Protocol, data: DataSection) -> dict[str, object] | None:
    """Return what decides a protocol's text, without reading a corpus; None for one of the hub."""
    if protocol.domain is not None:
        return corpora.domain_source(protocol.domain)
    path = data.wikitext2_path
    return {"sha256": hash_file(path)} if protocol.corpus == "wikitext2" and path else None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"data.wikitext2_path={path} has {formatting.n_bytes(path.stat().st_size)}; the test "
                "split of WikiText-2 has 1.3 MB."
            )
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.wikitext2_path={path} is not UTF-8 text ({error.reason}).") from error
    except OSError as error:
        raise UserError(f"data.wikitext2_path={path} cannot be read ({error.strerror}).") from error


def _hub_wikitext2(protocol: Protocol) -> list[str]:
    remedy = "set data.wikitext2_path to a file with its test split joined by blank lines"
    with _explained(protocol, "Salesforce/wikitext", remedy):
        from datasets import load_dataset

        rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")
        return list(rows["text"])


def _hub_c4(protocol: Protocol) -> list[str]:
    remedy = "connect to it, or choose a protocol heldout-<domain>-<len>, which needs no hub"
    with _explained(protocol, "allenai/c4", remedy):
        from datasets import load_dataset

        rows = load_dataset(
            "allenai/c4", data_files={"validation": _C4_FILE}, split="validation", streaming=True
        )
        return [row["text"] for row in islice(rows, _C4_DOCUMENTS)]


@contextmanager
def _explained(protocol: Protocol, dataset: str, remedy: str) -> Iterator[None]:
    with hub_or_local_copies():
        try:
            yield
        except hub_errors() as error:
            raise UserError(
                f"Protocol '{protocol.name}' needs {dataset} from the Hugging Face hub, which "
                f"could not be reached; {remedy}."
            ) from error


_C4_WINDOWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class ProtocolTokens:
    """The windows of one protocol.

    Attributes:
        protocol: what they are windows of.
        tokens: [n_windows, seq_len] int64, on the CPU; the first windows of the stream when capped.
        n_special: leading tokens of each window that are no text: 1 with a BOS token, else 0.
        n_tokens_total: tokens of the whole stream, the dropped tail included.
        fingerprint: sha256 of `tokens`, the cap and the window length therefore included.
        stream_fingerprint: sha256 of the whole stream, equal for all window lengths and caps.
        verified: whether the stream is the one that is known for this tokenizer.
        warnings: sentences that the record must carry; not empty when unverified.
    """

    protocol: Protocol
    tokens: torch.Tensor
    n_tokens_total: int
    fingerprint: str
    stream_fingerprint: str
    verified: bool
    warnings: tuple[str, ...]
    n_special: int

    @property
    def text_tokens(self) -> torch.Tensor:
        """The windows without their BOS token [n_windows, seq_len - n_special]."""
        return self.tokens[:, self.n_special :]


def protocol_tokens(
    protocol: Protocol, tokenizer: Any, experiment: Experiment, progress: Progress
) -> ProtocolTokens:
    """Tokenise a protocol's text and cut it into non-overlapping windows.

    With `evaluation.add_bos` every window is the BOS token and seq_len - 1 tokens of the stream, so that
    every token of text is scored; without, the first token of a window is only context.

    Raises:
        UserError: when the text is missing, shorter than one window, or gives other tokens than the
            protocol is known to have with this tokenizer; and for a BOS token that it lacks.
    """
    bos = bos_of(tokenizer, "evaluation.add_bos") if experiment.evaluation.add_bos else None
    width = protocol.seq_len - (bos is not None)
    with progress.activity(f"{protocol.name}: tokenise", 1) as advance:
        text = protocol_text(protocol, experiment, progress)
        stream = torch.tensor(encode(tokenizer, text), dtype=torch.int64)
        advance()
    n_windows = stream.numel() // width
    if n_windows == 0:
        raise UserError(
            f"Protocol '{protocol.name}' needs {width} tokens for one window, but its "
            f"text has only {stream.numel()}."
        )
    fingerprint = hash_tokens(stream)
    warnings = _compare_with_expected(protocol, tokenizer, stream.numel(), fingerprint)
    caps = [experiment.n_windows(), _C4_WINDOWS if protocol.corpus == "c4-new" else None]
    n_windows = min([n_windows, *(cap for cap in caps if cap is not None)])
    windows = stream[: n_windows * width].view(n_windows, width)
    if bos is not None:
        windows = torch.cat([torch.full((n_windows, 1), bos), windows], dim=1)
    return ProtocolTokens(
        protocol=protocol,
        tokens=windows,
        n_tokens_total=stream.numel(),
        fingerprint=hash_tokens(windows),
        stream_fingerprint=fingerprint,
        verified=not warnings,
        warnings=warnings,
        n_special=protocol.seq_len - width,
    )


@cache
def expected_tokens_hash() -> str:
    """Return the sha256 of what is known of protocols' tokens, on which `verified` depends."""
    return hash_text(files("faqbench.evaluation").joinpath("expected_tokens.yaml").read_text("utf-8"))


def hash_tokens(tokens: torch.Tensor) -> str:
    """Return the sha256 of a tensor of token ids, its shape included unless it is one row."""
    digest = hashlib.sha256(tokens.to(torch.int32).numpy().astype("<i4").tobytes())
    if tokens.dim() > 1:
        digest.update(repr(tuple(tokens.shape)).encode())
    return digest.hexdigest()


def vocabulary_hash(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's vocabulary, which is how expected tokens know it."""
    return hash_json(tokenizer.get_vocab())


def expected_entry(tokens: ProtocolTokens, tokenizer: Any, name: str) -> dict[str, Any]:
    """Return what `expected_tokens.yaml` is to hold for a stream whose text has been checked."""
    return {
        "tokenizer": name,
        "vocabulary": vocabulary_hash(tokenizer),
        "n_tokens": tokens.n_tokens_total,
        "sha256": tokens.stream_fingerprint,
    }


def _compare_with_expected(
    protocol: Protocol, tokenizer: Any, n_tokens: int, sha256: str
) -> tuple[str, ...]:
    tokenizers = _expected_tokens().get(protocol.stream, {})
    expected = tokenizers.get(vocabulary_hash(tokenizer))
    if expected is None:
        return (
            f"Protocol '{protocol.name}' is unverified: no token count and hash are known for this "
            f"tokenizer (found {n_tokens} tokens, sha256 {sha256[:16]}).",
        )
    if (n_tokens, sha256) != (expected["n_tokens"], expected["sha256"]):
        raise UserError(
            f"Protocol '{protocol.name}' is not what it is called: the {expected['tokenizer']} "
            f"tokenizer gives {n_tokens} tokens (sha256 {sha256[:16]}), not {expected['n_tokens']} "
            f"({expected['sha256'][:16]}); check the text or the tokenizer's version."
        )
    return ()


@cache
def _expected_tokens() -> dict[str, dict[str, dict[str, Any]]]:
    text = files("faqbench.evaluation").joinpath("expected_tokens.yaml").read_text("utf-8")
    entries = yaml.safe_load(text)
    return {stream: {entry["vocabulary"]: entry for entry in known} for stream, known in entries.items()}
