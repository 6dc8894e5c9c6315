"""Runs by the names that a user gives them: a run folder, a W&B folder, or a run on W&B's server."""

from collections.abc import Sequence

from arcdist.errors import ArcdistError, DataError
from arcdist.paths import expanded
from arcdist.tracking import identity
from arcdist.tracking.run_record import RunRecord, read_run_folder
from arcdist.tracking.wandb_files import is_wandb_folder, is_wandb_path, read_wandb_folder, read_wandb_run


def read_runs(names: Sequence[str]) -> tuple[list[RunRecord], list[str]]:
    """The runs that can be read, in their order, and a message for each that cannot, or is named twice."""
    records: list[RunRecord] = []
    refused = []
    for name in names:
        try:
            record = read_run(name)
            same = [other.place for other in records if other.identity.id == record.identity.id]
            if same and _are_siblings(name, same[0]):
                continue
            if same:
                raise DataError(f"{name} is the same run as {same[0]} ({record.identity.id}): name each run once.")
            records.append(record)
        except ArcdistError as error:
            refused.append(str(error))
    return records, refused


def _are_siblings(name: str, other: str) -> bool:
    """Whether W&B wrote both folders of a run, which was resumed: each stands for all of them."""
    first, second = (expanded(place).resolve() for place in (name, other))
    are_its = (any(folder.glob("run-*.wandb")) for folder in (first, second))
    return first != second and first.parent == second.parent and all(are_its)


def read_run(name: str) -> RunRecord:
    """The run of that name, wherever its numbers are kept.

    Raises:
        ConfigError, DataError, PlatformError: there is no such run, or it cannot be read.
    """
    if is_wandb_path(name):
        return read_wandb_run(name)
    folder = expanded(name)
    if not (folder / identity.FILE).exists() and is_wandb_folder(folder):
        return read_wandb_folder(folder)
    return read_run_folder(folder)
