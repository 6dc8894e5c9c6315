"""A run read back: what it was and all its numbers, from its folder or from W&B."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from arcdist.config.keys import config_keys, dotted
from arcdist.errors import ConfigError, DataError
from arcdist.files import expanded
from arcdist.tracking.metrics import read_numbers, read_validations
from arcdist.tracking.run_folder import FILE, read_identity, readable
from arcdist.tracking.wandb import RunData, is_wandb_path, read_wandb_run


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord(RunData):
    """A run as it is looked at afterwards; a quantity that it did not record is None."""

    place: str
    """Where it was read from, as the user named it."""

    @property
    def elapsed(self) -> float | None:
        """Seconds of wall-clock time."""
        return self._latest("time/elapsed_s")

    @property
    def device_hours(self) -> float | None:
        """Hours times processes."""
        return self._latest("time/device_hours")

    @property
    def pace(self) -> float | None:
        """Training queries a second: the median of the logged steps; of the epochs if no step has it."""
        paces = finite_values(self.steps, "pairs_per_s") or finite_values(self.epochs, "pairs_per_s")
        return median(paces) if paces else None

    @property
    def exact_queries(self) -> int | None:
        """Queries that the last validation found answered exactly."""
        return sum(result.exact for result in self.validations[-1].results.values()) if self.validations else None

    @property
    def exact_per_device_hour(self) -> float | None:
        """`exact_queries` over `device_hours`."""
        hours, exact = self.device_hours, self.exact_queries
        return exact / hours if exact is not None and hours else None

    def _latest(self, key: str) -> float | None:
        """The highest value, as the clock does not run backwards."""
        return max(finite_values((*self.steps, *self.epochs), key), default=None)


def finite_value(entry: Mapping[str, Any], key: str) -> float | None:
    """A number of an epoch or a logged step; None if it is missing or not finite."""
    value = entry.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def finite_values(entries: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """The known values of a number, in the order of the entries."""
    return [value for entry in entries if (value := finite_value(entry, key)) is not None]


def read_run(name: str) -> RunRecord:
    """Read a run folder, or, from W&B's server, the run `entity/project/run_id`.

    Raises:
        ConfigError, DataError, PlatformError: there is no such run, or it cannot be read.
    """
    if not is_wandb_path(name):
        return read_run_folder(expanded(name))
    run = read_wandb_run(name)
    return RunRecord(place=name, **{field.name: getattr(run, field.name) for field in fields(run)})


def read_run_folder(folder: Path) -> RunRecord:
    """Read a run folder; the run may still be training.

    Raises:
        ConfigError: it is not a run folder.
        DataError: it holds no logged step, or a file is broken.
    """
    if not _is_run_folder(folder):
        raise ConfigError(_not_a_run(folder))
    steps, metrics = read_numbers(folder)
    if not steps and not metrics["epochs"]:
        raise DataError(f"{folder} holds no logged step yet: wait until the run has made --output.log_every steps.")
    settings = folder / "config.yaml"
    with readable(settings, "a configuration of a run", "leave that run out"):
        config = dotted(yaml.safe_load(settings.read_text(encoding="utf-8")))
        for name, key in config_keys().items():
            # YAML takes 1e-05 for a text.
            if isinstance(key.default, float) and name in config:
                config[name] = float(config[name])
            elif isinstance(key.default, int) and not isinstance(config.get(name, 0), int):
                raise ValueError(f"{name} is {config[name]!r:.40}")
    return RunRecord(
        place=str(folder),
        identity=read_identity(folder),
        config=config,
        steps=tuple(steps),
        epochs=tuple(metrics["epochs"]),
        best=metrics["best"],
        validations=read_validations(folder),
    )


def _is_run_folder(folder: Path) -> bool:
    return (folder / FILE).exists() and (folder / "config.yaml").exists()


def _not_a_run(path: Path) -> str:
    for parent in (*path.parents, *path.absolute().parents) if path.exists() else ():
        if _is_run_folder(parent):
            return f"{path} is a part of a run: name the run's folder, {parent}."
    if path.suffix == ".wandb" or any(path.glob("*.wandb")) or any(path.glob("*run-*/run-*.wandb")):
        return (
            f"{path} is what W&B keeps of a run: name the run's folder, or upload it with `wandb sync` and name "
            f"entity/project/run_id."
        )
    if not path.is_dir():
        return f"{path}: there is no such folder. Give that of a run, such as runs/NAME."
    return f"{path} is not a run folder: it has no {FILE} or no config.yaml. Give that of a run."
