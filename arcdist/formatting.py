"""Numbers and counted nouns as pages, tables and sentences show them."""

from typing import Literal, TypeAlias

DASH = "–"
"""Shown in place of an unknown number."""

Sign: TypeAlias = Literal["", "+"]
"""Whether a number that is not negative has a sign, too."""


def number(value: float | int | None, form: str = ",.0f") -> str:
    """A number in a Python format, or a dash."""
    return DASH if value is None else format(value, form)


def significant(value: float | int, digits: int) -> str:
    """A number with so many significant digits; no digit before the point is dropped, integers stay as they are."""
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def hundredths(share: float | int, sign: Sign = "") -> str:
    """A share of 1 as `4.00`, where a label says that it is in percent."""
    return f"{100 * share:{sign}.2f}"


def percent(share: float | int | None, sign: Sign = "") -> str:
    """A share of 1 as `4.00 %`, or a dash."""
    return DASH if share is None else f"{hundredths(share, sign)} %"


def counted(count: int, noun: str) -> str:
    """`1 epoch`, `18 epochs`, `2 queries`, `4 processes`."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{count:,} {noun}"


def duration(seconds: float | int | None) -> str:
    """Seconds up to five minutes, minutes up to two hours, hours beyond; or a dash."""
    if seconds is None:
        return DASH
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
