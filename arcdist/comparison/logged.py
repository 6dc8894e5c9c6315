"""The numbers of epochs and logged steps, as far as they are there."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """A number of an epoch or a logged step; none where it is missing or not finite."""
    value = entry.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def numbers(entries: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """Those that are there, in their order."""
    return [value for entry in entries if (value := number(entry, key)) is not None]
