"""A run as it is looked at afterwards: what it was and all its numbers, wherever they were kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arcdist.errors import ConfigError, DataError
from arcdist.tracking.metrics import Validation, read_numbers, read_validations
from arcdist.tracking.run_folder import FILE, Identity, read_identity


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run, read whole."""

    place: str
    """Where it was read from, as the user named it."""
    identity: Identity
    config: Mapping[str, Any]
    """By dotted key."""
    steps: tuple[Mapping[str, Any], ...]
    """The logged steps: the objects of `steps.jsonl`, by step."""
    epochs: tuple[Mapping[str, Any], ...]
    """The records of `metrics.json`, by epoch."""
    best: Mapping[str, Any]
    """The record of the best epoch and `metric`, its measure; empty before the first validation."""
    validations: tuple[Validation, ...]
    """By epoch; those without a validation are missing."""


def read_run_folder(folder: Path) -> RunRecord:
    """Read a run folder; the run may still go on.

    Raises:
        ConfigError: it is no run folder.
        DataError: it holds no logged step, or a file is broken.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Give that of a run, such as runs/NAME.")
    if not (folder / FILE).exists() or not (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is no run folder: it has no {FILE} or no config.yaml. Give that of a run.")
    steps, metrics = read_numbers(folder)
    if not steps and not metrics["epochs"]:
        raise DataError(f"{folder} holds no logged step yet: wait until the run has made --output.log_every steps.")
    return RunRecord(
        place=str(folder),
        identity=read_identity(folder),
        config=_read_config(folder / "config.yaml"),
        steps=tuple(steps),
        epochs=tuple(metrics["epochs"]),
        best=metrics["best"],
        validations=read_validations(folder),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(flat(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (AttributeError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no configuration of a run ({error}): mend it, or leave that run out.") from error


def flat(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by dotted key."""
    for name, value in part.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
