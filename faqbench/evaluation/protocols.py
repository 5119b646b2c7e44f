r"""Names of perplexity protocols and what they stand for.

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
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from faqbench import corpora
from faqbench.config import Experiment, UserError, did_you_mean

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


def resolve_protocol(name: str, experiment: Experiment) -> Protocol:
    """Return the protocol with this name, after all checks that need no loading.

    Raises:
        UserError: for an unknown name or domain, a window that is too short, and a
            `data.wikitext2_path` that is not a file.
    """
    if name == f"c4-new-{_C4_WINDOW}":
        return Protocol(name=name, corpus="c4-new", domain=None, seq_len=_C4_WINDOW)
    if match := _WIKITEXT2.fullmatch(name):
        path = experiment.data.wikitext2_path
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
