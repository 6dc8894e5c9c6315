"""Measure a configuration's pace: `python launch/bench.py --steps 50`, or the same under `accelerate launch`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.cli import quick_imports
from arcdist.config import Option, Program, load_config
from arcdist.distributed import FailureWatch, run_guarded

BENCH = Program(
    name="bench.py",
    purpose="Train a number of steps, print pace, memory and the share of the device's rate; no file is written.",
    options={"steps": Option(metavar="N", sentence="Steps to time, after 5 to warm up; 50 by default.", is_count=True)},
)


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("bench.py", lambda watch: _run(argv, watch))


def _run(argv: Sequence[str], watch: FailureWatch) -> None:
    loaded = load_config(argv, BENCH)
    config = loaded.config
    with quick_imports():
        from arcdist.distributed.collectives import shutdown
        from arcdist.training.out_of_memory import explained_out_of_memory
        from arcdist.training.trial import benchmark

    with watch, explained_out_of_memory(config):
        benchmark(config, int(loaded.options.get("steps", "50")))
        shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
