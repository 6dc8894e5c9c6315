"""Answer puzzles with a trained run, and score the answers: `python launch/evaluate.py runs/NAME`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.cli import quick_imports
from arcdist.config import load_config
from arcdist.config.loader import EVALUATE
from arcdist.distributed import FailureWatch, run_guarded


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("evaluate.py", lambda watch: _run(argv, watch))


def _run(argv: Sequence[str], watch: FailureWatch) -> None:
    loaded = load_config(argv, EVALUATE)
    # Imported here, so that help and mistakes in the command line need not wait for torch.
    with quick_imports():
        from arcdist.solving.evaluate import evaluate

    with watch:
        evaluate(loaded)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
