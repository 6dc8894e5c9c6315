"""The numbers of a run on disk: `steps.jsonl`, `metrics.json` and the plot drawn from them."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from arcdist.errors import DataError
from arcdist.tracking.atomic import replacing
from arcdist.tracking.plots import plot_metrics

Record: TypeAlias = Mapping[str, float | int | str | Sequence[str] | None]
"""Numbers by name. Python floats only: what is still a tensor has not been waited for."""

_logger = logging.getLogger(__name__)


class TrainingMetricsTracker:
    """Writes a run's numbers as they come, and knows the best epoch.

    Numbers that are not finite are stored as null, so that every line and file is valid JSON. A tracker on a folder
    that holds such files goes on from them.
    """

    def __init__(
        self, run_dir: Path, best_metric: str = "val/exact", tie_metric: str = "val/cell", *, writes: bool = True
    ) -> None:
        """Open the files in `run_dir`; one that does not write keeps the numbers and touches no file.

        Raises:
            DataError: `steps.jsonl` or `metrics.json` in there is broken.
        """
        self.steps_path = run_dir / "steps.jsonl"
        self.metrics_path = run_dir / "metrics.json"
        self.plot_path = run_dir / "metrics_plot.png"
        self.best_metric = best_metric
        self.tie_metric = tie_metric
        self._writes = writes
        self._steps = _read_steps(self.steps_path) if writes and self.steps_path.exists() else []
        self._epochs = _read_epochs(self.metrics_path) if writes and self.metrics_path.exists() else []

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of the epochs so far, in their order."""
        return list(self._epochs)

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch and `metric`, its measure; empty before the first validation.

        Ties go to the higher `tie_metric`, then to the earlier epoch.
        """
        scored = [record for record in self._epochs if record.get(self.best_metric) is not None]
        if not scored:
            return {}
        record = max(scored, key=self._rank)
        return {"metric": self.best_metric, **record}

    def go_on_from(self, step: int, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Forget the steps after `step`, and know these epochs only: what a checkpoint was taken after."""
        self._steps = [record for record in self._steps if record["step"] <= step]
        self._epochs = [dict(record) for record in epochs]
        if not self._writes:
            return
        with replacing(self.steps_path) as partial:
            partial.write_text("".join(_line(record) for record in self._steps), encoding="utf-8")
        if self._epochs:
            self._write_epochs()
        else:
            self.metrics_path.unlink(missing_ok=True)

    def log_step(self, record: Record) -> None:
        """Append a logged step (with its `step` and `epoch`) to `steps.jsonl`."""
        step = _finite(record)
        if self._writes:
            with self.steps_path.open("a", encoding="utf-8") as lines:
                lines.write(_line(step))
        self._steps.append(step)

    def log_epoch(self, record: Record) -> bool:
        """Put an epoch (with its `epoch`) into `metrics.json`, in place of an earlier record of it.

        Returns True if this epoch is now the best one.
        """
        epoch = _finite(record)
        others = [other for other in self._epochs if other["epoch"] != epoch["epoch"]]
        self._epochs = sorted([*others, epoch], key=lambda other: other["epoch"])
        if self._writes:
            self._write_epochs()
        return bool(self.best) and self.best["epoch"] == epoch["epoch"]

    def draw(self) -> Path:
        """Draw `metrics_plot.png` anew and return its path."""
        if self._writes:
            plot_metrics({"epochs": self._epochs, "best": self.best}, self._steps, self.plot_path)
        return self.plot_path

    def _write_epochs(self) -> None:
        with replacing(self.metrics_path) as partial:
            partial.write_text(
                json.dumps({"epochs": self._epochs, "best": self.best}, indent=2, allow_nan=False) + "\n",
                encoding="utf-8",
            )

    def _rank(self, record: dict[str, Any]) -> tuple[float, float]:
        tie = record.get(self.tie_metric)
        return record[self.best_metric], -math.inf if tie is None else tie


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _finite(record: Record) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def _read_steps(path: Path) -> list[dict[str, Any]]:
    """Every whole line. A last line without its end was cut off with the process that wrote it, and goes."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        _logger.warning("%s: dropped an unfinished last line.", path)
        with replacing(path) as partial:
            partial.write_bytes(whole)
    steps = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            steps.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}): mend or remove the line.") from error
    return steps


def _read_epochs(path: Path) -> list[dict[str, Any]]:
    try:
        epochs: list[dict[str, Any]] = json.loads(path.read_bytes())["epochs"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path} is not a metrics file ({error!r}): it needs {{"epochs": [...]}}; mend it or move it away.'
        ) from error
    return epochs
