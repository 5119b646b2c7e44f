"""The verb `presearch`: a search, its finalists and the preset that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.cli.console import console_progress, print_table
from faqbench.cli.launching import dtype_notes
from faqbench.config import UserError
from faqbench.statistics import percent_of_log
from faqbench.tables import Table


def presearch(arguments: list[str]) -> int:
    """Choose FAQ's window, gamma and preview options on selection text: presearch model=… presearch=quick.

    Takes the keys of a run (quant is faq unless given). Every trial is kept in the cache, so a search that
    is stopped resumes. It ends with a table of the finalists and writes below paths.presearch: all trials,
    the evidence, and a dated preset that `--config-dir` makes a choice of quant.
    """
    from faqbench.corpora import check_domain
    from faqbench.pipeline import check_models
    from faqbench.presearch import search, write_search
    from faqbench.presearch.trials import verdict
    from faqbench.stages import StageCache

    request = compose_cells(parse_flags(_with_faq(arguments)))
    if request.is_sweep:
        raise UserError("presearch sweeps by itself: give it one model and one setting, without -m.")
    (experiment,) = request.experiments
    for domain in experiment.presearch.domains or ():
        check_domain(domain, "presearch.domains")
    check_models([experiment])
    progress = console_progress()
    for note in dtype_notes([experiment]):
        progress.note(note)
    result = search(experiment, cache=StageCache(), progress=progress)
    preset = write_search(result, datetime.now(UTC).date())
    print_table(
        Table.of(
            [
                {
                    "candidate": e.name,
                    "perplexity": f"{e.perplexity:.3f}",
                    "against AWQ": "" if e.name == "awq" else _percent(e.log_ratio),
                    "95 % interval": "" if e.name == "awq" else f"{_percent(e.low)} to {_percent(e.high)}",
                    "output error": f"{e.output_error:.5f}",
                    "": "chosen" if index == 0 else "tied" if e.tied else "",
                }
                for index, e in enumerate(result.evidence)
            ],
            f"Judged on {result.selection}",
        )
    )
    print(f"{result.chosen.name}: {verdict(result.evidence[0])}.")
    folder = preset.parent.parent
    print(f"Preset: {preset}; use it with --config-dir {folder} quant={preset.stem}")
    return 0


def _with_faq(arguments: Sequence[str]) -> list[str]:
    """Choose quant=faq unless the user chose; beside the other overrides, where argparse wants it."""
    places = [i for i, word in enumerate(arguments) if "=" in word and not word.startswith("-")]
    if any(arguments[i].startswith("quant=") for i in places):
        return list(arguments)
    first = places[0] if places else len(arguments)
    return [*arguments[:first], "quant=faq", *arguments[first:]]


def _percent(log_ratio: float) -> str:
    return f"{percent_of_log(log_ratio):+.2f} %"
