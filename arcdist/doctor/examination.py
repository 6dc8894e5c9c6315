"""Findings and their table, and the first of them: the installation. Nothing here needs any of what it looks at."""

import importlib
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist import __version__
from arcdist.distributed import is_main
from arcdist.errors import (
    ArcdistError,
    ConfigError,
    DistributedError,
    NotFiniteError,
    OutOfMemoryError,
    PlatformError,
    kind_and_reason,
)

T = TypeVar("T")


class Verdict(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARN = "warn"
    """A run may begin, but the user should know."""
    FAIL = "FAIL"
    """A run would fail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found on one process."""

    found: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
    """What to do, if the verdict is not ok and `found` does not say it."""
    exit_code: int = PlatformError.exit_code
    """The program's, if the verdict is FAIL."""
    differing: Verdict = Verdict.OK
    """What it is at least, if processes have found different things."""


def warning(found: str, advice: str) -> Finding:
    """A finding that the user should know of."""
    return Finding(found=found, verdict=Verdict.WARN, advice=advice)


def failure(found: str, advice: str, exit_code: int = PlatformError.exit_code) -> Finding:
    """A finding with which no run can begin."""
    return Finding(found=found, verdict=Verdict.FAIL, advice=advice, exit_code=exit_code)


def try_check(look: Callable[[], T], *, broken: Verdict = Verdict.FAIL) -> T | Finding:
    """The result of `look`; if it raises, a finding that says so.

    Args:
        look: a check, or something that a run does as well.
        broken: the verdict if it raises anything but an `ArcdistError`, which is always FAIL.
    """
    try:
        return look()
    except ArcdistError as error:
        return Finding(found=str(error), verdict=Verdict.FAIL, exit_code=error.exit_code)
    except Exception as error:
        may = "may" if broken is Verdict.WARN else "would"
        found = f"This could not be looked at. {kind_and_reason(error)}"
        return Finding(found=found, verdict=broken, advice=f"A run {may} meet the same error.")


def to_text(findings: Mapping[str, Finding]) -> str:
    """Findings by the name of their check, as JSON."""
    return json.dumps({check: asdict(finding) for check, finding in findings.items()})


def from_text(text: str) -> dict[str, Finding]:
    """The findings that `to_text` wrote."""
    return {
        check: Finding(**{**fields, **{key: Verdict(fields[key]) for key in ("verdict", "differing")}})
        for check, fields in json.loads(text).items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one or more processes found alike."""

    check: str
    who: str = ""
    """These processes; empty if no other found anything else."""
    finding: Finding


def merge(reports: Mapping[int, Mapping[str, Finding]], hosts: Mapping[int, str]) -> list[Row]:
    """One row for each different thing that a check has found, in the order of the checks.

    Args:
        reports: each rank's findings by check.
        hosts: each rank's machine.
    """
    checks = dict.fromkeys(check for report in reports.values() for check in report)
    return [row for check in checks for row in _rows(check, reports, hosts)]


def _rows(check: str, reports: Mapping[int, Mapping[str, Finding]], hosts: Mapping[int, str]) -> Iterator[Row]:
    ranks: dict[Finding, list[int]] = {}
    for rank, report in reports.items():
        if check in report:
            ranks.setdefault(report[check], []).append(rank)
    for finding, same in ranks.items():
        who = "" if len(ranks) == 1 else name_ranks(same)
        if who and len(set(hosts.values())) > 1:
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


_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}
_ERRORS = {kind.exit_code: kind for kind in (PlatformError, OutOfMemoryError, NotFiniteError, DistributedError)}


def conclude(rows: Sequence[Row]) -> None:
    """Print the table on process 0, and raise if a check has failed.

    Raises:
        ArcdistError: with the exit code of the first failed check. On other processes, whose table is not shown, the
            message says all that has failed.
    """
    if is_main():
        Console().print(_table(rows))
    failed = [row for row in rows if row.finding.verdict is Verdict.FAIL]
    if not failed:
        return
    kind = _ERRORS.get(failed[0].finding.exit_code, ConfigError)
    if is_main():
        names = ", ".join(f"{row.check} ({row.who})" if row.who else row.check for row in failed)
        raise kind(f"Failed: {names}. The table says what to do.")
    raise kind("; ".join(f"{row.check}: {row.finding.found}. {row.finding.advice}".strip() for row in failed))


def _table(rows: Sequence[Row]) -> RenderableType:
    """Check, found and verdict; below what was found, what to do."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold", ratio=1)
    table.add_column("verdict")
    before = ""
    for row in rows:
        style = _STYLES[row.finding.verdict]
        found = Text(f"{row.who}: " if row.who else "").append(row.finding.found)
        if row.finding.advice:
            found.append(f"\n→ {row.finding.advice}", style=style)
        table.add_row("" if row.check == before else row.check, found, Text(row.finding.verdict, style=style))
        before = row.check
    return table


_LIBRARIES = ("accelerate", "transformers", "peft", "datasets")
_DRIVER = Path("/sys/module/nvidia/version")


def check_installation() -> dict[str, Finding]:
    """Look at Python, PyTorch, the libraries and arcdist itself."""
    bounds = _bounds()
    findings = {
        "Python": Finding(found=f"{platform.python_version()} ({sys.executable})", differing=Verdict.WARN),
        "PyTorch": _library("torch", bounds, imported=True),
    }
    # Without PyTorch the others cannot be imported either.
    imported = findings["PyTorch"].verdict is not Verdict.FAIL
    findings |= {name: _library(name, bounds, imported=imported) for name in _LIBRARIES}
    others = {name: _library(name, bounds, imported=False) for name in sorted(bounds.keys() - {"torch", *_LIBRARIES})}
    findings |= {name: finding for name, finding in others.items() if finding.verdict is Verdict.FAIL}
    if all(finding.verdict is not Verdict.FAIL for finding in findings.values()):
        findings["arcdist"] = try_check(_arcdist)
    return findings


def installed_version(distribution: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _bounds() -> dict[str, Any]:
    """The versions that arcdist's metadata ask for, as specifiers; empty in a checkout that was never installed."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in metadata.requires("arcdist") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return {}
    return {
        requirement.name: requirement.specifier
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def _library(name: str, bounds: Mapping[str, Any], *, imported: bool) -> Finding:
    bound = bounds.get(name, "")
    version = installed_version(name)
    install = f"Install it with `pip install '{name}{bound}'`."
    if version is None:
        return failure("not installed", install)
    if bound and not bound.contains(version, prereleases=True):
        return failure(f"{version}, but arcdist needs {bound}", install)
    found = version
    if imported:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a library that is half there may raise anything
            again = f"with `pip install --force-reinstall '{name}=={version}'`"
            if name == "torch":
                again = "for this machine, as https://pytorch.org/get-started/locally says"
            return failure(
                f"{version}, which cannot be imported: {kind_and_reason(error)}", f"Install it again {again}."
            )
        found = _torch_build(module) if name == "torch" else version
    return Finding(found=found, differing=Verdict.WARN)


def _torch_build(torch: Any) -> str:
    cuda, hip = torch.version.cuda, torch.version.hip
    built = f"for CUDA {cuda}" if cuda else f"for ROCm {hip}" if hip else "without CUDA"
    driver = f"NVIDIA driver {_DRIVER.read_text().strip()}" if _DRIVER.is_file() else "no NVIDIA driver"
    return f"{torch.__version__}, built {built}; {driver}"


def _arcdist() -> Finding:
    try:
        # It imports all the others that pyproject.toml names.
        training = importlib.import_module("arcdist.training")
    except ImportError as error:
        return failure(
            f"{__version__}, of which a part cannot be imported: {kind_and_reason(error)}",
            "Install what is missing: `pip install arcdist`, or `pip install .` in a checkout.",
        )
    return Finding(
        found=f"{__version__} in {Path(training.__file__ or '').resolve().parents[1]}", differing=Verdict.WARN
    )
