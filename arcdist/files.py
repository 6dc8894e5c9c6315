"""Files that a reader finds whole or not at all."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from arcdist.errors import ConfigError, SaveError


def expanded(place: str | Path) -> Path:
    """A path with `~` as the home folder that it stands for.

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


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


def unwritable(what: str, path: Path, error: OSError, needed: int, *, for_room: str = "", elsewhere: str = "") -> str:
    """Why something could not be written, and the mend.

    Args:
        what: as the message begins, with its path.
        path: where it belongs; nothing need be there yet.
        error: that writing met.
        needed: bytes of all that was to be written.
        for_room: what else gives room than removing files, such as "lower --output.keep_last".
        elsewhere: how the user gets around that place, such as "export to another folder".
    """
    told = f"{what} could not be written ({error.strerror or error}{_culprit(path, error)})"
    if error.errno in _NO_ROOM:
        # What is free on the disk is not what is left of a quota.
        free = _free(path) if error.errno == errno.ENOSPC else ""
        return f"{told}: it needs {decimal(needed)}{free}. {_choices('Make room', for_room, elsewhere)}"
    if error.errno == errno.EFBIG:
        return f"{told}: it needs {decimal(needed)}. Raise the limit on a file's size (ulimit -f)."
    if error.errno in _NO_RIGHT:
        return f"{told}. {_choices('See who may write there', elsewhere)}"
    # A disk that is full may say no more than that something went wrong.
    size = f": it needs {decimal(needed)}{_free(path)}" if error.errno == errno.EIO else ""
    return f"{told}{size}. {_choices('See what is wrong there', elsewhere)}"


def _culprit(path: Path, error: OSError) -> str:
    """The path that the error names, unless that is the place itself, or what it is first written as, beside it."""
    named, place = error.filename, path.absolute()
    if named is None or place.parent in Path(named).absolute().parents:
        return ""
    return f": {named}"


def _free(path: Path) -> str:
    """Nothing where the disk does not say."""
    try:
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
    except OSError:
        return ""
    return f", and {decimal(free)} are free there"


def _choices(*choices: str) -> str:
    first, *others = filter(None, choices)
    return f"{first}{''.join(f', or {other}' for other in others)}."


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` when the block ends, or goes if it fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
