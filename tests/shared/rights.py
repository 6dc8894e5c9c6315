"""Folders that the tests themselves may not read, whoever runs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """Take the rights to a path away. Root, whom that does not stop, is somebody else meanwhile.

    Paths inside have to be relative to a folder that anybody may enter: pytest's own are its user's.
    """
    mode, is_root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    try:
        if is_root:
            try:
                os.seteuid(_NOBODY)
            except OSError:
                pytest.skip("root cannot be anybody else here")
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(mode)
