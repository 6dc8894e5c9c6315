"""Measure a configuration's pace: `python launch/bench.py --steps 50`, or the same under `accelerate launch`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.config import load_config
from arcdist.distributed import FailureWatch, run_guarded
from arcdist.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("bench.py", lambda watch: _run(argv, watch))


def _run(argv: Sequence[str], watch: FailureWatch) -> None:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Train a number of steps and print pace, memory and the share of the device's rate. Every flag of "
        "train.py is understood as well.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="steps to time, after 5 to warm up (50)")
    try:
        options, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}: give a number, such as --steps 50.") from error
    if options.steps < 1:
        raise ConfigError(f"--steps is {options.steps}: choose at least 1.")
    config = load_config(rest).config
    from arcdist.distributed.exchange import part
    from arcdist.training.benchmark import benchmark
    from arcdist.training.memory_limit import explained_out_of_memory

    with watch, explained_out_of_memory(config.train.batch_size):
        benchmark(config, options.steps)
        part()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
