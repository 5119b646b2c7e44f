"""Corpora: kinds of text by name, and their disjoint calibration, selection and evaluation parts.

A packaged domain is a name for a kind of text: an entry of `domains.yaml`. Every document belongs to one
part, decided by its own hash (`part_of`), so nothing is ever calibrated and evaluated on the same
document, whichever domain or run it comes through.

Adding a domain is one entry there:

    medicine:
      description: one line on what it is and how much of it there is
      sources: [medmcqa]          # text sources of `faqbench.assets`, joined in this order

`sources` may also be a mapping from a label to such a list. Then the domain is all of them
together, and each label is a domain of its own besides, named `<name>-<label>`: `code` and
`code-java`.

Adding a data set of the hub is one entry of `hub_sets.yaml` with the fields of `HubSet`; any other
set is `hub:OWNER/NAME` with `calibration.hub` and `calibration.column`. The path of a user's file is a
corpus too: a .txt file, whose paragraphs, separated by blank lines, are the texts, or a column of a
.jsonl or .parquet file.
"""

from faqbench.corpora.corpus import (
    Corpus,
    Part,
    check_domain,
    corpus_source,
    domain_names,
    domain_source,
    domain_texts,
    part_of,
    read_corpus,
)
from faqbench.corpora.hub_set import hub_set_names

__all__ = [
    "Corpus",
    "Part",
    "check_domain",
    "corpus_source",
    "domain_names",
    "domain_source",
    "domain_texts",
    "hub_set_names",
    "part_of",
    "read_corpus",
]
