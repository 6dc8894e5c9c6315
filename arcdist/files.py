"""Files that a reader finds whole or not at all: the only code that writes beside a name and then renames."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arcdist.errors import ConfigError, SaveError, reason


def expanded(place: str | Path) -> Path:
    """A path with `~` replaced by the home folder.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        name = Path(place).parts[0]
        raise ConfigError(
            f"{place}: {name} is nobody's home folder here; write the path in full, or ./{name} for a folder so named."
        ) from error


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` when the block ends, or goes if it fails.

    Args:
        path: the file.
        durable: whether the content is forced to disk first, so that it survives a loss of power.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        if durable:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path in a folder, which is whole as soon as it has its name.

    Args:
        target: the folder to make; an empty one of that name is replaced.
        files: their contents.

    Raises:
        SaveError: it could not be written; nothing of it is left.
    """
    place = target.resolve()
    # A random name, so that what a user or another program keeps beside the target is left alone.
    made = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        fill_folder(made, files)
        made = made.rename(place)
        force_to_disk(place.parent)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError):
            needed = sum(map(len, files.values()))
            message = unwritable(str(target), target, error, needed, elsewhere="export to another folder")
            raise SaveError(message) from error
        raise


def fill_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with files by their path in it, and force all of it to disk but the folder's own name."""
    folders = {folder, *((folder / name).parent for name in files)}
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for each in folders:
        force_to_disk(each)


def force_to_disk(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(what: str, path: Path, error: OSError, needed: int, *, for_room: str = "", elsewhere: str = "") -> str:
    """Why something could not be written, and how to fix it.

    Args:
        what: begins the message.
        path: where it belongs; there may be nothing yet.
        error: raised while writing.
        needed: bytes of all that was to be written.
        for_room: what gives room beside removing files, such as "lower --output.keep_last".
        elsewhere: how to avoid that place, such as "export to another folder".
    """
    from rich.filesize import decimal  # the doctor reports it if rich is missing

    room, free = f": it needs {decimal(needed)}", _free(path)
    size, *choices = {
        errno.ENOSPC: (room + free, "Make room", for_room, elsewhere),
        errno.EDQUOT: (room, "Make room", for_room, elsewhere),  # What is free on the disk is not left of a quota.
        errno.EFBIG: (room, "Raise the limit on a file's size (ulimit -f)"),
        errno.EIO: (room + free, "See what is wrong there", elsewhere),  # A full disk may report no more than this.
        **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ("", "See who may write there", elsewhere)),
    }.get(error.errno or 0, ("", "See what is wrong there", elsewhere))
    # The path that the error names, unless that is the place itself or the partial file beside it.
    named = error.filename
    culprit = "" if named is None or path.absolute().parent in Path(named).absolute().parents else f": {named}"
    actions = ", or ".join(filter(None, choices))
    return f"{what} could not be written ({reason(error)}{culprit}){size}. {actions}."


def _free(path: Path) -> str:
    """How much room there is, if the disk reports it."""
    from rich.filesize import decimal

    try:
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
    except OSError:
        return ""
    return f", and {decimal(free)} are free there"
