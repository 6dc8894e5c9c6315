"""Numbers as the page says them."""

from collections.abc import Mapping
from typing import Any

DASH = "–"
"""What stands where a run does not know a number."""


def number(value: float | int | None, form: str = ",.0f") -> str:
    """A number in a Python format, or a dash."""
    return DASH if value is None else format(value, form)


def percent(share: float | int | None) -> str:
    """A share of 1 as `4.00 %`, or a dash."""
    return DASH if share is None else f"{share * 100:.2f} %"


def counted(count: int, noun: str) -> str:
    """`1 epoch`, `18 epochs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def duration(seconds: float | int | None) -> str:
    """Seconds up to five minutes, minutes up to two hours, hours beyond; or a dash."""
    if seconds is None:
        return DASH
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def value(config: Mapping[str, Any], key: str) -> str:
    """A value of a configuration as YAML has it, or a dash where the run knew no such key."""
    return shown(config[key]) if key in config else DASH


def shown(setting: Any) -> str:
    """A value of a configuration as one would write it into a file."""
    if isinstance(setting, list | tuple):
        return f"[{', '.join(map(str, setting))}]"
    if setting is None:
        return "null"
    return str(setting).lower() if isinstance(setting, bool) else str(setting)
