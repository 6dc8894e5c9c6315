"""Named regions of a step, for a profiler; without one they cost next to nothing."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from torch.profiler import record_function

PREFIX = "arcdist/"
"""What the names of regions begin with in a trace."""
STEP = "step"
"""All that a step computes, other regions included."""
DATA = "data"
"""The wait for a batch, before its step."""

_NOTHING = nullcontext()
_recorded = False

Item = TypeVar("Item")


def region(name: str) -> AbstractContextManager[object]:
    """Make the block a region of that name in a trace; of nested regions the inner one has the time."""
    return record_function(PREFIX + name) if _recorded else _NOTHING


def each_in_region(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; making each of them is a region."""
    iterator, end = iter(items), object()
    while True:
        with region(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # it is no `end`


@contextmanager
def recorded_regions() -> Iterator[None]:
    """While the block runs, a profiler sees regions."""
    global _recorded
    _recorded = True
    try:
        yield
    finally:
        _recorded = False
