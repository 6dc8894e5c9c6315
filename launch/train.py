"""Train ARC: `python launch/train.py --help`, or the same under `accelerate launch`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.cli import quick_imports
from arcdist.config import format_config, load_config
from arcdist.distributed import FailureWatch, run_guarded


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("train.py", lambda watch: _run(argv, watch))


def _run(argv: Sequence[str], watch: FailureWatch) -> int:
    loaded = load_config(argv)
    if "print_config" in loaded.switches:
        print(format_config(loaded.config, loaded.sources), end="")
        return 0
    # Imported here, so that help and mistakes in the command line need not wait for torch.
    with quick_imports():
        from arcdist.training.run import train

    with watch:
        return train(loaded, watch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
