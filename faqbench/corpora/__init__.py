"""Domains of text, and their disjoint calibration, selection and evaluation parts.

A domain is a name for a kind of text: one yaml in `domains/`, found by listing the folder. Every
text belongs to one part, decided by the text's own hash (`part_of`), so nothing is ever calibrated
and evaluated on the same text, whichever domain or run it comes through.

Adding a domain is one file `domains/<name>.yaml`:

    name: medicine
    description: one line on what it is and how much of it there is
    sources: [medmcqa]            # text sources of `faqbench.assets`, joined in this order

`sources` may also be a mapping from a label to such a list. Then the domain is all of them
together, and each label is a domain of its own besides, named `<name>-<label>`: `code` and
`code-java`.

The path of a user's .txt file is a domain too: its paragraphs, separated by blank lines, are the
texts.
"""

from faqbench.corpora.domain import domain_names, domain_texts
from faqbench.corpora.part import Part, part_of

__all__ = ["Part", "domain_names", "domain_texts", "part_of"]
