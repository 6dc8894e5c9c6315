"""Importing torch and what stands on it, in two thirds of the time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what takes seconds within this block, which a program enters once.

    Libraries make a million objects that all stay. Looking for garbage among them takes a third of the time of
    importing them, then time in each later collection, and again at the end: it is left out, for good.
    """
    if not gc.isenabled() or "torch" in sys.modules:  # What else is there by then may well be garbage.
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
