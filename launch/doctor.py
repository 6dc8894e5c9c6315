"""Will a run work here? `python launch/doctor.py` and train.py's flags, or the same under `accelerate launch`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this script's folder on the path, where a script hides the package of its name (`evaluate`).
    # The checkout's root belongs there instead: the package beside the script is the one that runs.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(entry for entry in sys.path if entry != str(folder))]

from arcdist.cli import quick_imports
from arcdist.distributed import FailureWatch, run_guarded
from arcdist.errors import PlatformError, reason


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_guarded("doctor.py", lambda watch: _run(argv, watch))


def _run(argv: Sequence[str], watch: FailureWatch) -> None:
    try:
        with quick_imports():
            from arcdist.config import load_config
            from arcdist.doctor import DOCTOR, examine
    except ImportError as error:
        # All else that may be missing is reported in the table; this is what the table needs.
        raise PlatformError(
            f"{reason(error)}: {sys.executable} lacks what arcdist needs. Install it with `pip install arcdist`, or "
            f"with `pip install .` in a checkout, or start the program with another Python."
        ) from error
    loaded = load_config(argv, DOCTOR)
    examine(loaded.config, watch, fit="fit" in loaded.switches)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
