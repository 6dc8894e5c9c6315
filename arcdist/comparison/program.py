"""What `launch/compare.py` runs: read, compare, show, write."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from arcdist.comparison import wandb_report
from arcdist.comparison.comparison import compare
from arcdist.comparison.files import make_folder, write_files
from arcdist.comparison.reading import read_runs
from arcdist.comparison.terminal import show
from arcdist.errors import ConfigError, DataError


def compare_runs(names: Sequence[str], folder: Path | None, *, report: bool) -> None:
    """Print the comparison of the runs of these names.

    Args:
        names: run folders, W&B folders, or runs on W&B's server.
        folder: where page, pictures and numbers go, where given.
        report: whether a W&B report is written as well.

    Raises:
        ConfigError: a single run is named, the folder cannot be written, or a report is not possible.
        DataError: runs cannot be read; where at least two can, these have been compared before.
    """
    if len(names) < 2:
        raise ConfigError("One run is no comparison: name at least two.")
    if folder is not None and folder == Path():
        raise ConfigError("--output_dir is empty, or the folder that you are in: name a folder of its own.")
    if report:
        wandb_report.check(names)
    records, refused = read_runs(names)
    if len(records) < 2:
        raise DataError("\n".join(refused))
    comparison = compare(records, refused)
    written = []
    if folder is not None:
        make_folder(folder)
        written += [str(path) for path in write_files(comparison, folder)]
    if report:
        try:
            written.append(wandb_report.write(comparison))
        except DataError as error:
            refused.append(str(error))
    # Last: whoever reads it may have seen enough, and end the program.
    console = Console()
    show(comparison, console)
    if written:
        console.print()
    for place in written:
        console.print(f"Written: {place}", soft_wrap=True, highlight=False, markup=False)
    if refused:
        raise DataError("\n".join(refused))
