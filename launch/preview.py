"""Look at puzzles as the models are given them: `python launch/preview.py 007bbfb7`, and train.py's flags."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.analysis.preview_arguments import PREVIEW, read_arguments
from arcdist.cli import quick_imports
from arcdist.config import load_config
from arcdist.distributed import run_guarded


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("preview.py", lambda _: _run(argv))


def _run(argv: Sequence[str]) -> None:
    loaded = load_config(argv, PREVIEW)
    arguments = read_arguments(loaded)
    # Imported here, so that help and mistakes in the command line need not wait for torch.
    with quick_imports():
        from arcdist.analysis.preview import preview

    preview(loaded.config, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
