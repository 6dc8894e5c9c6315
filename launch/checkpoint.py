"""What checkpoints there are, whether they are whole, and export: `python launch/checkpoint.py list RUN`."""

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
    return run_guarded("checkpoint.py", lambda _: _run(argv))


def _run(argv: Sequence[str]) -> None:
    given = _parser().parse_args(argv)
    # Imported here, so that help and mistakes in the command line need not wait for torch.
    if given.command == "export":
        with quick_imports():
            from arcdist.checkpoint.export import export

        export(given.checkpoint, given.folder)
    else:
        with quick_imports():
            from arcdist.checkpoint.inspect import show_run, verify

        if given.command == "list":
            show_run(given.run)
        else:
            verify(given.checkpoints)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="checkpoint.py",
        description="What checkpoints a run has, whether they are whole, and their models as files for others.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listed = commands.add_parser(
        "list",
        help="A table of a run's checkpoints.",
        description="Print a table of a run's checkpoints. Exit code 2 if the newest one is broken, or there is none.",
    )
    listed.add_argument("run", type=Path, metavar="RUN", help="A run folder, or its checkpoints/.")
    verified = commands.add_parser(
        "verify",
        help="Whether checkpoints are as they were written.",
        description="Compare checkpoints with their checksums, a line each. Exit code 2 if one is broken.",
    )
    verified.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        metavar="CHECKPOINT",
        help="The folder of a checkpoint, or of a run for all that it has.",
    )
    exported = commands.add_parser(
        "export",
        help="A PEFT adapter, the agent and the rest as safetensors, and a model card.",
        description="Write a checkpoint's models into a folder: a PEFT adapter, the agent and the rest as safetensors, "
        "and a model card. Qwen's frozen base is neither loaded nor written.",
    )
    exported.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="The folder of a checkpoint, or of a run for its best/, else its newest whole checkpoint.",
    )
    exported.add_argument("folder", type=Path, metavar="FOLDER", help="The folder to make; empty, or not there yet.")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
