"""A run as one page of HTML that opens without a network: `python launch/report.py RUN`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.cli import OneLineParser, quick_imports
from arcdist.distributed import run_guarded


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("report.py", lambda _: _run(argv))


def _run(argv: Sequence[str]) -> None:
    given = _parser().parse_args(argv)
    # Imported here, so that help and mistakes in the command line do not wait for Matplotlib.
    with quick_imports():
        from arcdist.analysis.report import write_report

    path = write_report(given.run, given.output)
    print(f"The report of {given.run}: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="report.py",
        description="Write a page about a run: what it was, its health, curves, predictions, hardest tasks and cost. "
        "It is one file of HTML and opens without a network; the run may still be training.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="A run folder.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Where the page goes; RUN/report.html without it.")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
