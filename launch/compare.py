"""Which of several runs is better, and why: `python launch/compare.py RUN RUN`."""

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
    return run_guarded("compare.py", lambda _: _run(argv))


def _run(argv: Sequence[str]) -> None:
    given = _parser().parse_args(argv)
    # Imported here, so that help and mistakes in the command line do not wait for Matplotlib.
    with quick_imports():
        from arcdist.analysis.compare import compare_runs

    compare_runs(given.runs, given.output_dir, report=given.wandb)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="compare.py",
        description="Compare runs: scores, curves, cost, what differs in their configurations, which puzzles each "
        "solved, and which is better by more than chance. Exit code 2 if a run cannot be read; the others are "
        "compared nevertheless.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="A run folder, or entity/project/run_id of a run on W&B. At least two. The verdict goes by their last "
        "validations.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="Write compare.html, curves.png, efe_terms.png and compare.json into this folder.",
    )
    parser.add_argument("--wandb", action="store_true", help="Write a W&B report as well; all runs have to be on W&B.")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
