"""What `training.log` warned of, in short, and how the run was started and ended."""

import re
from dataclasses import dataclass
from pathlib import Path

from arcdist.errors import DataError

_RECORD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ([A-Z]+) ?(.*)")
_LONGEST = 300
_ENDED = ("Interrupted", "Asked to make room", "Ended by Ctrl-C")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """A line of the log, with what followed it as lines of its own."""

    time: str
    level: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Complaint:
    """Warnings or errors that differ in their numbers only."""

    level: str
    text: str
    """The first of them, cut off where it is long."""
    count: int
    last: str
    """When the last one came."""


def read_log(path: Path) -> list[LogEntry]:
    """The records of a `training.log`; empty where there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see who may read there.") from error
    records: list[list[str]] = []
    for line in lines:
        if match := _RECORD.fullmatch(line):
            records.append(list(match.groups()))
        elif records and line.strip() and records[-1][1] != "INFO":
            # Of a traceback the last line says what happened.
            records[-1][3:] = [line.strip()]
    return [LogEntry(time=time, level=level, text=" … ".join([text, *more])) for time, level, text, *more in records]


def complaints(log: list[LogEntry]) -> list[Complaint]:
    """Warnings and errors, those that differ in numbers only counted together, in the order of their first ones."""
    kinds: dict[tuple[str, str], list[LogEntry]] = {}
    for entry in log:
        if entry.level not in ("INFO", "DEBUG"):
            kinds.setdefault((entry.level, re.sub(r"[\d.,]*\d", "0", entry.text)), []).append(entry)
    return [
        Complaint(level=level, text=_short(entries[0].text), count=len(entries), last=entries[-1].time)
        for (level, _), entries in kinds.items()
    ]


def resumptions(log: list[LogEntry]) -> int:
    """How often the run was resumed."""
    return sum(entry.text.startswith("Resumed from ") for entry in log)


def ending(log: list[LogEntry]) -> str | None:
    """What the log says about a run's end before its last epoch; none where it says nothing."""
    last = log[-1] if log else None
    if last is None or (last.level not in ("ERROR", "CRITICAL") and not last.text.startswith(_ENDED)):
        return None
    return _short(last.text)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
