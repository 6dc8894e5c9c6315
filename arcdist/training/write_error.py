"""What to say of files that could not be written: the mend depends on why."""

import errno
import shutil
from pathlib import Path

from rich.filesize import decimal

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
