"""`python -m faqbench` and the console script `faqbench`."""

import sys


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 a cell failed, 2 a mistake to mend."""
    from faqbench.cli import main as command_line

    sys.exit(command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
