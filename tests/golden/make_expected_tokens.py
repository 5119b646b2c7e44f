"""Remake `faqbench/evaluation/expected_tokens.yaml` from the packaged domains and a WikiText-2 file.

    python tests/golden/make_expected_tokens.py smollm2-135m=SmolLM2 gemma3-270m=Gemma3 wikitext2=FILE

Run it when the texts of a domain change on purpose, and look at the difference before it is committed:
an entry that moves makes every number of its protocol incomparable with earlier ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import yaml

from faqbench import corpora, evaluation
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.evaluation import protocols
from faqbench.models import load_tokenizer
from faqbench.stages import PlainProgress

TARGET = Path(protocols.__file__).with_name("expected_tokens.yaml")


def main(arguments: list[str]) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
    wikitext2 = settings.pop("wikitext2", None)
    known = yaml.safe_load(TARGET.read_text("utf-8"))
    made: dict[str, list[dict[str, object]]] = {}
    for model, name in settings.items():
        flags = [f"model={model}", f"data.wikitext2_path={wikitext2 or 'null'}"]
        experiment = compose_cells(parse_flags(flags)).experiments[0]
        tokenizer = load_tokenizer(experiment.model, PlainProgress())
        names = [
            f"{part}-{domain}-512" for part in ("heldout", "selection") for domain in corpora.domain_names()
        ]
        for protocol_name in ["wikitext2-512", *names] if wikitext2 else names:
            protocol = evaluation.resolve_protocol(protocol_name, experiment.data)
            with mock.patch.object(protocols, "_expected_tokens", dict):
                tokens = evaluation.protocol_tokens(protocol, tokenizer, experiment, PlainProgress())
            made.setdefault(protocol.stream, []).append(protocols.expected_entry(tokens, tokenizer, name))
    replaced = set(settings.values())
    for stream in {*known, *made}:
        kept = [e for e in known.get(stream, []) if e["tokenizer"] not in replaced]
        missing = [e for e in known.get(stream, []) if stream not in made]
        known[stream] = made.get(stream, []) + kept if stream in made else missing
    order = ["wikitext2", *sorted(s for s in known if s != "wikitext2")]
    head = "".join(f"{line}\n" for line in TARGET.read_text("utf-8").splitlines() if line.startswith("#"))
    body = yaml.safe_dump({s: known[s] for s in order}, sort_keys=False)
    TARGET.write_text(head + body, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
