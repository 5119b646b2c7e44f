"""`python -m faqbench` and the console script `faqbench`."""

import gc
import sys


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 a cell failed, 2 a mistake to mend."""
    from faqbench.cli.surroundings import restart_in_utf8

    restart_in_utf8(sys.argv[1:])
    from faqbench.cli import main as command_line

    code = command_line(sys.argv[1:])
    gc.freeze()  # the process ends: looking for cycles among all of torch's objects takes most of a second
    sys.exit(code)


if __name__ == "__main__":
    main()
