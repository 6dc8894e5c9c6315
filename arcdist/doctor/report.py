"""The findings of all processes as one table, and what they come to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist.distributed import is_main
from arcdist.doctor.finding import Finding, Verdict
from arcdist.errors import ConfigError, DistributedError, NotFiniteError, OutOfMemoryError, PlatformError

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}
_ERRORS = {kind.exit_code: kind for kind in (PlatformError, OutOfMemoryError, NotFiniteError, DistributedError)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one or more processes found alike."""

    check: str
    who: str
    """These processes; empty where no other found anything else."""
    finding: Finding


def merge(reports: Mapping[int, Mapping[str, Finding]], hosts: Mapping[int, str]) -> list[Row]:
    """One row for each different thing that a check has found, in the order of the checks.

    Args:
        reports: each rank's findings by check.
        hosts: each rank's machine.
    """
    return [row for check in _in_order(reports.values()) for row in _rows(check, reports, hosts)]


def _in_order(reports: Iterable[Mapping[str, Finding]]) -> list[str]:
    return list(dict.fromkeys(check for report in reports for check in report))


def _rows(check: str, reports: Mapping[int, Mapping[str, Finding]], hosts: Mapping[int, str]) -> Iterator[Row]:
    ranks: dict[Finding, list[int]] = {}
    for rank, report in reports.items():
        if check in report:
            ranks.setdefault(report[check], []).append(rank)
    several = len(set(hosts.values())) > 1
    for finding, same in ranks.items():
        who = "" if len(ranks) == 1 else name_ranks(same)
        if who and several:
            who += f" on {', '.join(dict.fromkeys(hosts[rank] for rank in same))}"
        if len(ranks) > 1 and finding.verdict is Verdict.OK and finding.differing is not Verdict.OK:
            finding = replace(finding, verdict=finding.differing, advice="Make it the same for all processes.")
        yield Row(check=check, who=who, finding=finding)


def name_ranks(ranks: Sequence[int]) -> str:
    """Ranks in ascending order, such as "ranks 0-3, 6"."""
    starts = [rank for before, rank in pairwise([-2, *ranks]) if rank != before + 1]
    ends = [rank for rank, after in pairwise([*ranks, ranks[-1] + 2]) if after != rank + 1]
    parts = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(parts)}"


def table(rows: Sequence[Row]) -> RenderableType:
    """Check, found and verdict; below what was found, what to do."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lines.add_column("check", no_wrap=True)
    lines.add_column("found", overflow="fold", ratio=1)
    lines.add_column("verdict")
    for before, row in pairwise([None, *rows]):
        assert row is not None
        is_next = before is not None and before.check == row.check
        found = Text(f"{row.who}: " if row.who else "").append(row.finding.found)
        if row.finding.advice:
            found.append(f"\n→ {row.finding.advice}", style=_STYLES[row.finding.verdict])
        verdict = Text(row.finding.verdict, style=_STYLES[row.finding.verdict])
        lines.add_row("" if is_next else row.check, found, verdict)
    return lines


def conclude(rows: Sequence[Row]) -> None:
    """Print the table on process 0, and raise where a check has failed.

    Raises:
        ArcdistError: with the exit code of the first failed check. Where this process's table is not shown, because it
            is not process 0, the message says all of what has failed.
    """
    if is_main():
        Console().print(table(rows))
    failed = [row for row in rows if row.finding.verdict is Verdict.FAIL]
    if not failed:
        return
    kind = _ERRORS.get(failed[0].finding.exit_code, ConfigError)
    if is_main():
        names = ", ".join(f"{row.check} ({row.who})" if row.who else row.check for row in failed)
        raise kind(f"Failed: {names}. What to do stands in the table.")
    raise kind("; ".join(f"{row.check}: {row.finding.found}. {row.finding.advice}".strip() for row in failed))
