"""Runs by the names that a user gives them: a run folder, a W&B folder, or a run on W&B's server."""

import re
from collections.abc import Sequence
from pathlib import Path

from arcdist.errors import ArcdistError, DataError
from arcdist.tracking import identity
from arcdist.tracking.run_record import RunRecord, read_run_folder

_ON_THE_SERVER = re.compile(r"[^/\s.~][^/\s]*/[^/\s]+/[^/\s]+")


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
    first, second = (Path(place).expanduser().resolve() for place in (name, other))
    return first != second and first.parent == second.parent


def read_run(name: str) -> RunRecord:
    """The run of that name, wherever its numbers are kept.

    Raises:
        ConfigError, DataError, PlatformError: there is no such run, or it cannot be read.
    """
    # W&B takes a second to import, and without it a run folder is still read.
    if is_on_the_server(name):
        from arcdist.tracking.wandb_files import read_wandb_run

        return read_wandb_run(name)
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / identity.FILE).exists():
        from arcdist.tracking.wandb_files import is_wandb_folder, read_wandb_folder

        if is_wandb_folder(folder):
            return read_wandb_folder(folder)
    return read_run_folder(folder)


def is_on_the_server(name: str) -> bool:
    """Whether a name is `entity/project/run_id`: of that shape, and no path here, not even a mistyped one."""
    path = Path(name).expanduser()
    return bool(_ON_THE_SERVER.fullmatch(name)) and not path.exists() and not path.parent.is_dir()
