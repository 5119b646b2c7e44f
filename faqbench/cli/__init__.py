"""The command line. A first word that is a verb goes to that verb; anything else goes to Hydra.

A verb is a function of its name here, `verb(arguments) -> int`, and a line in `VERBS`; its docstring is its
help. Everything a user can get wrong arrives as a `UserError`: one sentence on standard error,
exit code 2, no traceback.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from faqbench.cli.surroundings import check_folder, own_streams, take_verbosity, verbosity
from faqbench.config import UserError
from faqbench.interrupts import number_of, received, signals_end_it

VERBS = {
    "cache": "faqbench.cli.housekeeping",
    "compact": "faqbench.cli.housekeeping",
    "compare": "faqbench.cli.results",
    "doctor": "faqbench.cli.doctor",
    "export": "faqbench.cli.export",
    "fetch": "faqbench.cli.housekeeping",
    "ls": "faqbench.cli.results",
    "plan": "faqbench.cli.plan",
    "presearch": "faqbench.cli.presearch",
    "report": "faqbench.cli.results",
    "rm": "faqbench.cli.housekeeping",
    "settle": "faqbench.cli.settle",
    "show": "faqbench.cli.results",
    "sync": "faqbench.cli.dashboards",
    "verify": "faqbench.cli.export",
    "wandb-report": "faqbench.cli.dashboards",
    "watch": "faqbench.cli.dashboards",
}
_RUN = "faqbench.cli.cells"


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 when all is done, 1 when a cell failed, 2 for a mistake that the user can mend, 128 + n when
        signal n asked it to end: 130 after Ctrl-C.
    """
    arguments, level = take_verbosity(arguments)
    code = 0
    came: Sequence[int] = ()
    try:
        with own_streams() as (out, _), signals_end_it() as came, verbosity(level):
            code = _run(arguments)
            if out.error is not None:
                reason = out.error.strerror or str(out.error)
                print(
                    f"faqbench: standard output could not be written ({reason}); files are complete.",
                    file=sys.stderr,
                )
                code = code or 1
    except KeyboardInterrupt as error:
        number = number_of(error)  # a launcher's process may have been struck, not this one
        return _stopped(came[0] if came else number)
    except BaseException:
        if not came:
            raise
    return _stopped(came[0]) if came else code


def _run(arguments: Sequence[str]) -> int:
    try:
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if received() is None:  # else it is what Hydra made of an interrupt
            print(f"faqbench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        sys.stdout = None  # nothing is left to flush at exit
        return 0
    except OSError as error:  # of a path that was only to be looked at
        from faqbench.files import sentence_of

        if (sentence := sentence_of(error)) is None:
            raise
        print(f"faqbench: {sentence}", file=sys.stderr)
        return 2


def _command(arguments: Sequence[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if verb in {"help", "--version"}:
        return _help() if verb == "help" else _version()
    check_folder()
    if verb in VERBS:
        run = verb_function(verb)
        if {"-h", "--help"} & set(rest):
            print(f"faqbench {verb}: {inspect.getdoc(run)}")
            return 0
        return run(list(rest))
    return _run_cells(arguments)


def verb_function(verb: str) -> Callable[[list[str]], int]:
    """Return the function of a verb."""
    function: Callable[[list[str]], int] = getattr(
        importlib.import_module(VERBS[verb]), verb.replace("-", "_")
    )
    return function


def _stopped(number: int) -> int:
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    with suppress(OSError):  # the terminal may be gone, and say so by this very signal
        print(f"faqbench: stopped{by}; finished cells and stages are kept.", file=sys.stderr)
    return 128 + number


def _run_cells(arguments: Sequence[str]) -> int:
    code = int(importlib.import_module(_RUN).run(list(arguments)))
    tracking = sys.modules.get("faqbench.tracking")  # loaded by the first cell that ran here
    if tracking is not None:
        tracking.wait_for_followers()
    return code


def _help() -> int:
    print("python -m faqbench [key=value ...]           run a cell; -m runs a sweep; --help lists keys")
    print("                   -q, -v                     less and more words, before or after the rest")
    for verb in VERBS:
        help_text = inspect.getdoc(verb_function(verb)) or ""
        print(f"python -m faqbench {verb:<12} {help_text.splitlines()[0]}")
    return 0


def _version() -> int:
    from faqbench import __version__

    print(f"faqbench {__version__}")
    return 0
