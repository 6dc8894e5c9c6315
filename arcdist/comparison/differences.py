"""What the runs do not have in common: keys of the configuration, devices, versions, data."""

from collections.abc import Mapping, Sequence
from typing import Any

from arcdist.comparison.runs import Run
from arcdist.comparison.sheet import Line, Sheet
from arcdist.tracking.run_record import RunRecord

_NO_DIFFERENCE = ("output.dir",)
"""Every run has its own."""
_CHECKSUM_DIGITS = 10
_COMMIT_DIGITS = 7


def difference_sheet(runs: Sequence[Run]) -> Sheet:
    """A row for each property in which at least two runs differ; a dash where a run does not have it."""
    properties = [_properties(run.record) for run in runs]
    names = dict.fromkeys(name for known in properties for name in known)
    lines = []
    for name in names:
        values = tuple(known.get(name) for known in properties)
        if any(value != values[0] for value in values):
            lines.append(Line(key=name, label=name, values=values, unit="text"))
    note = "" if lines else "Configuration, data, device and versions are the same."
    columns = tuple(run.letter for run in runs)
    return Sheet(key="differences", title="What differs", columns=columns, lines=tuple(lines), note=note)


def _properties(record: RunRecord) -> Mapping[str, Any]:
    identity = record.identity
    config = {name: _plain(value) for name, value in record.config.items() if name not in _NO_DIFFERENCE}
    return {
        "recipe": _plain(identity.recipe),
        **config,
        **{f"{part} tasks": checksum[:_CHECKSUM_DIGITS] for part, checksum in identity.data.items()},
        "device": identity.device,
        "processes": identity.processes,
        "ZeRO stage": _plain(identity.zero_stage),
        "git commit": _short(identity.git_commit),
        **{f"version of {package}": version for package, version in identity.versions.items()},
    }


def _plain(value: Any) -> Any:
    """A null in words: None is for a run that has no such key."""
    return "none" if value is None else value


def _short(commit: str | None) -> str:
    if commit is None:
        return "none"
    digits, changes, _ = commit.partition("+changes")
    return digits[:_COMMIT_DIGITS] + changes
