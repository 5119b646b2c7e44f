"""Verify an exported checkpoint against the run that it came from: verify FOLDER.

A process without faqbench's modelling code loads the folder with transformers and compares every linear,
the logits of fixed prompts, the perplexity of the run's protocols and the size of the files with what was
measured. The run itself need not be here. Exit code 1 when anything differs by more than it may.
"""

from __future__ import annotations

from pathlib import Path

from faqbench.cli.arguments import Keys, read_arguments
from faqbench.cli.console import print_table
from faqbench.config import UserError
from faqbench.tables import Table


def run(arguments: list[str]) -> int:
    """Verify one folder and print what was compared."""
    from faqbench.export.verify import verify_folder

    words, _ = read_arguments("verify", arguments, Keys, n_words=1)
    if not words:
        raise UserError("verify needs the folder of an exported checkpoint.")
    verdict = verify_folder(Path(words[0]).expanduser())
    print_table(
        Table.of(
            [
                {
                    "compared": check.name,
                    "passed": "yes" if check.passed else "NO",
                    "largest difference": f"{check.largest:.2g}",
                    "allowed": f"{check.tolerance:.2g}",
                    "where": check.where,
                }
                for check in verdict.checks
            ]
        )
    )
    print(
        f"Loaded by {verdict.loader}; "
        f"{verdict.n_equal} of {verdict.n_linears} linears are then equal to the bit."
    )
    print(f"{'PASS' if verdict.passed else 'FAIL'}: {words[0]} against {verdict.run_id}")
    return 0 if verdict.passed else 1
