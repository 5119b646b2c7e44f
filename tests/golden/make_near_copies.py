"""Write `faqbench/corpora/near_copies.txt`: packaged texts that must be neither drawn nor selected by.

    python tests/golden/make_near_copies.py

A text's part follows from its hash, so two texts cut from one article, or two variants of one exercise,
may fall into different parts. Those of the calibration and selection parts that share a passage with the
evaluation part of any packaged domain, or with a document that a packaged task scores, are listed here by
their hash and drawn from no more (`corpora.near_copies`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faqbench
from faqbench.assets import packaged_dataset
from faqbench.corpora import domain_names, part_of
from faqbench.corpora.corpus import digest, packaged_documents
from faqbench.evaluation.harness import texts_in
from faqbench.evaluation.overlap import texts_that_overlap
from faqbench.evaluation.results import packaged_task, read_documents, task_names
from faqbench.stages import PlainProgress

TARGET = Path(faqbench.__file__).parent / "corpora" / "near_copies.txt"
PROGRESS = PlainProgress()


def evaluations() -> Iterator[list[str]]:
    """Yield the passages of every held-out protocol and every packaged task."""
    for domain in domain_names():
        documents = packaged_documents(domain, PROGRESS)
        yield [text for text, key in documents.items() if part_of(key) == "evaluation"]
    for name in task_names():
        task = packaged_task(name)
        rows = read_documents(task, packaged_dataset(task.dataset, PROGRESS)).rows
        yield [text for row in rows for text in texts_in(row)]


def near_copies() -> list[str]:
    """Return the digests, sorted."""
    texts = {
        text
        for domain in domain_names()
        for text, key in packaged_documents(domain, PROGRESS).items()
        if part_of(key) != "evaluation"
    }
    every, found = sorted(texts), set()
    for passages in evaluations():
        found |= set(texts_that_overlap(every, passages))
    return sorted(digest(every[i]) for i in found)


if __name__ == "__main__":
    lines = near_copies()
    TARGET.write_text("".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} texts")
