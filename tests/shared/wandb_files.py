"""What W&B keeps of a run in its folder, as W&B's own program reads it."""

import json
import subprocess
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

from arcdist.tracking.wandb import RunData, parse_wandb_run


def wandb_files(folder: Path) -> list[Path]:
    """The logs that W&B has written for the run in `folder`, one a process that trained it, by time."""
    return sorted((folder / "wandb").glob("*run-*/run-*.wandb"), key=lambda path: path.parent.name.split("run-")[1])


def inspect(file: Path) -> list[dict[str, Any]]:
    """The records of a log."""
    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-run-file", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    return [json.loads(line) for line in shown.splitlines()]


def logged_rows(folder: Path) -> list[dict[str, Any]]:
    """The history of the run in `folder`: the rows of all its logs."""
    records = [record for file in wandb_files(folder) for record in inspect(file)]
    return [_nested(record["history"]["item"]) for record in records if record["type"] == "history"]


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """A row with `a.b` as `b` in `a`, as W&B's server has it."""
    nested: dict[str, Any] = {}
    for name, value in row.items():
        outer, _, inner = name.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return nested


def read_wandb_files(folder: Path) -> RunData:
    """The run in `folder` from all that W&B has written there: what `wandb sync` would upload."""
    records = (record for file in wandb_files(folder) for record in inspect(file))
    config = next(record["run"]["config"] for record in records if record["type"] == "run")
    tables = {
        path.relative_to(files).as_posix(): json.loads(path.read_bytes())
        for files in (folder / "wandb").glob("*run-*/files")
        for path in files.glob("media/table/**/*.json")
    }
    rows = sorted(logged_rows(folder), key=lambda row: int(row["_step"]))
    return parse_wandb_run(str(folder), config["update"], rows, tables)
