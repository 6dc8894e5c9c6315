"""Files that are on the disk, whole and under their names, when the function that wrote them returns."""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from arcdist.errors import SaveError
from arcdist.training.write_error import unwritable


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path in a folder, which is whole as soon as it has its name.

    Args:
        target: the folder to make; an empty one of that name is replaced.
        files: their contents.

    Raises:
        SaveError: it could not be written; nothing of it is left.
    """
    place = target.resolve()
    # The name is nobody else's: what a user, or another program, keeps beside the target is left alone.
    made = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        made.mkdir(parents=True)
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(made / name, content)
        for folder in {(made / name).parent for name in files} | {made}:
            force_to_disk(folder)
        made = made.rename(place)
        force_to_disk(place.parent)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError):
            needed = sum(map(len, files.values()))
            told = unwritable(str(target), target, error, needed, elsewhere="export to another folder")
            raise SaveError(told) from error
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file and force it to disk; its name is there for sure once its folder is forced there as well."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def force_to_disk(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
