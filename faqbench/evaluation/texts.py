"""The text of each protocol: a local file, a packaged domain, or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from faqbench import corpora, formatting
from faqbench.config import Experiment, UserError
from faqbench.evaluation.protocols import Protocol
from faqbench.hub import hub_errors, hub_or_local_copies
from faqbench.stages import Progress, hash_file

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


def text_source(protocol: Protocol, experiment: Experiment) -> dict[str, object] | None:
    """Return what decides a protocol's text, without reading a corpus; None for one of the hub."""
    if protocol.domain is not None:
        return corpora.domain_source(protocol.domain)
    path = experiment.data.wikitext2_path
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
