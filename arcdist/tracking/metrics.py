"""The numbers of a run on disk: `steps.jsonl`, `metrics.json`, `validation/` and the plot drawn from them."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from arcdist.errors import DataError, reason
from arcdist.files import replacing
from arcdist.tracking.run_folder import readable

_STEPS, _METRICS = "steps.jsonl", "metrics.json"

Record: TypeAlias = Mapping[str, float | int | str | Sequence[str] | None]
"""Numbers by name, as Python floats: a tensor would have to be waited for."""

Rows: TypeAlias = tuple[tuple[int, ...], ...]
"""A grid of colours 0 to 9, row by row."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """How well a query was answered."""

    exact: bool
    """Size and every cell are right."""
    cell: float
    """Share of the target's cells that are right."""
    confidence: float
    """Geometric mean of the probabilities of the answer's cells, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownQuery:
    """The grids of a query that is shown whole."""

    id: str
    input: Rows
    target: Rows
    steps: tuple[Rows, ...]
    """The answer after each planning step, in the size of the last."""
    prediction: Rows
    """The answer that is scored: after the last step, with the solver's memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The validation of one epoch."""

    epoch: int
    """Counted from 0."""
    step: int
    """Steps of the run before it."""
    results: Mapping[str, QueryResult]
    """By query id, `<task id>:test:<pair index>`, in the order of the ids."""
    shown: tuple[ShownQuery, ...]
    """The same queries in each epoch, and in each run on the same data."""


_DRAWING_SHARE = 0.02
"""Most of a run's time that pictures may take where epochs are short."""


class TrainingMetricsTracker:
    """Writes a run's numbers as they come, and knows the best epoch.

    Numbers that are not finite are stored as null, so that every line and file is valid JSON. A tracker on a folder
    that holds such files continues them. What a full disk refuses is reported, and written once there is room.
    """

    def __init__(self, run_dir: Path, best_metric: str = "val/exact", *, writes: bool = True) -> None:
        """Open the files in `run_dir`; without `writes`, the numbers of epochs are kept and no file is touched.

        Raises:
            DataError: `steps.jsonl` or `metrics.json` there is broken.
        """
        self.steps_path = run_dir / _STEPS
        self.metrics_path = run_dir / _METRICS
        self.plot_path = run_dir / "metrics_plot.png"
        self._folder = run_dir
        self._best_metric = best_metric
        self._writes = writes
        self._unwritten: dict[Path, Callable[[], None]] = {}
        self._draw_again_at = 0.0
        self._steps: list[dict[str, Any]] = []
        self._epochs: list[dict[str, Any]] = []
        if writes:
            self._steps, metrics = read_numbers(run_dir)
            self._epochs = metrics["epochs"]
            # A last line may have been cut off with the process that wrote it.
            if self.steps_path.exists() and self.steps_path.read_bytes()[-1:] not in (b"", b"\n"):
                _logger.warning("%s: dropped an unfinished last line.", self.steps_path)
                self._write_steps()

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of the epochs so far, in order."""
        return list(self._epochs)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The logged steps so far; empty if this tracker does not write."""
        return list(self._steps)

    def validations(self) -> tuple[Validation, ...]:
        """The validations so far, by epoch; empty if this tracker does not write.

        Raises:
            DataError: a file in `validation/` is broken.
        """
        return read_validations(self._folder) if self._writes else ()

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch and `metric`, its measure; empty before the first validation."""
        return best_epoch(self._epochs, self._best_metric)

    def resume_from(self, step: int, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Continue from a checkpoint: keep the steps up to `step`, and its epochs in place of the known ones."""
        self._steps = [record for record in self._steps if record["step"] <= step]
        self._epochs = [dict(record) for record in epochs]
        if not self._writes:
            return
        self._write_steps()
        if self._epochs:
            self._write_epochs()
        else:
            self.metrics_path.unlink(missing_ok=True)
        known = {validation_path(self._folder, epoch["epoch"]) for epoch in self._epochs}
        for path in set(_validation_paths(self._folder)) - known:
            path.unlink()

    def log_step(self, record: Record) -> None:
        """Append a logged step (with its `step` and `epoch`) to `steps.jsonl`."""
        if not self._writes:
            return
        step = finite(record)
        self._steps.append(step)
        # Nothing is appended to a line that a full disk cut off: the whole file is written again.
        behind = self.steps_path in self._unwritten
        self._write(self.steps_path, self._write_steps if behind else lambda: self._append(step))

    def log_epoch(self, record: Record) -> bool:
        """Put an epoch (with its `epoch`) into `metrics.json`, in place of an earlier record of it.

        Returns True if this epoch is now the best one.
        """
        epoch = finite(record)
        others = [other for other in self._epochs if other["epoch"] != epoch["epoch"]]
        self._epochs = sorted([*others, epoch], key=lambda other: other["epoch"])
        self._write(self.metrics_path, self._write_epochs)
        return bool(self.best) and self.best["epoch"] == epoch["epoch"]

    def log_validation(self, validation: Validation) -> None:
        """Keep how each query was answered, in `validation/`."""
        path = validation_path(self._folder, validation.epoch)
        self._write(path, lambda: write_validation(self._folder, validation))

    def draw(self, *, sparingly: bool = False) -> Path:
        """Draw `metrics_plot.png` again and return its path; `sparingly`, unless that has taken much of the time."""
        begun = time.perf_counter()
        if not sparingly or begun > self._draw_again_at:
            self._write(self.plot_path, self._draw)
            ended = time.perf_counter()
            self._draw_again_at = ended + (ended - begun) / _DRAWING_SHARE
        return self.plot_path

    def _draw(self) -> None:
        from arcdist.tracking.plots import Curves, plot_metrics

        try:
            plot_metrics(Curves(epochs=self._epochs, best=self.best, steps=self._steps), self.plot_path)
        except OSError:
            raise
        except Exception as error:  # A picture is not worth a run.
            _logger.warning("%s could not be drawn (%s: %s).", self.plot_path, type(error).__name__, error)

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        """Write a file, after those that could not be written before; a full disk does not end a run."""
        if not self._writes:
            return
        for place, again in {**self._unwritten, path: write}.items():
            try:
                again()
            except OSError as error:
                if place not in self._unwritten:
                    _logger.error(
                        "NOT WRITTEN: %s (%s). It is kept in memory and written as soon as there is room. "
                        "Training continues.",
                        place,
                        reason(error),
                    )
                self._unwritten[place] = self._write_steps if place == self.steps_path else again
            else:
                self._unwritten.pop(place, None)

    def _append(self, step: Mapping[str, Any]) -> None:
        with self.steps_path.open("a", encoding="utf-8") as lines:
            lines.write(_line(step))

    def _write_steps(self) -> None:
        _replace(self.steps_path, "".join(map(_line, self._steps)))

    def _write_epochs(self) -> None:
        content = {"epochs": self._epochs, "best": self.best}
        _replace(self.metrics_path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def best_epoch(epochs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """The record of the epoch with the highest `metric`, with that name as `metric`; empty if none has one.

    Ties go to the higher `val/cell`, then to the earlier epoch.
    """

    def rank(record: Mapping[str, Any]) -> tuple[float, float]:
        tie = record.get("val/cell")
        return float(record[metric]), -math.inf if tie is None else float(tie)  # W&B keeps 1.0 as 1

    best = max((record for record in epochs if record.get(metric) is not None), key=rank, default=None)
    return {"metric": metric, **best} if best else {}


def finite(record: Record) -> dict[str, Any]:
    """A record as it is stored: numbers that are not finite are null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_numbers(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The objects of `steps.jsonl` and the content of `metrics.json` in a run folder; empty if not yet written.

    A last line of `steps.jsonl` that is being written is left out. The content of `metrics.json` is `epochs`, a list
    of records, and `best`, one of them or empty.

    Raises:
        DataError: a file is broken, or cannot be read.
    """
    return _read_steps(folder / _STEPS), _read_metrics(folder / _METRICS)


def _read_steps(path: Path) -> list[dict[str, Any]]:
    with readable(path, "a file of steps"):
        content = path.read_bytes() if path.exists() else b""
    steps = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}): repair or remove the line.") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise DataError(f"{path}, line {number} is no record of a step: repair or remove the line.")
        try:
            steps.append(_checked(record))
        except TypeError as error:
            raise DataError(
                f"{path}, line {number} is no record of a step ({error}): repair or remove the line."
            ) from error
    return steps


def _read_metrics(path: Path) -> dict[str, Any]:
    with readable(path, "a metrics file"):
        content = json.loads(path.read_bytes()) if path.exists() else {"epochs": []}
        if not isinstance(content["epochs"], list):
            raise TypeError("epochs is no list")
        return {
            "epochs": [{**_checked(epoch), "epoch": int(epoch["epoch"])} for epoch in content["epochs"]],
            "best": _checked(content.get("best", {})),
        }


def _checked(record: Any) -> dict[str, Any]:
    """A record from JSON, as `Record` has it.

    Raises:
        TypeError: it is none, or a value is not a number.
    """
    if not isinstance(record, dict):
        raise TypeError(f"{record!r:.40} is no object of numbers by name")
    for name, value in record.items():
        if not isinstance(value, {"flags": list, "metric": str}.get(name, int | float | None)):
            raise TypeError(f"{name} is {value!r:.40}")
    return record


def task_of(query: str) -> str:
    """The task of a query, from `<task id>:test:<pair index>`."""
    return query.rsplit(":", 2)[0]


def validation_path(folder: Path, epoch: int) -> Path:
    """The file of an epoch's validation in a run folder."""
    return folder / "validation" / f"epoch_{epoch:05d}.json"


def _validation_paths(folder: Path) -> list[Path]:
    return sorted((folder / "validation").glob("epoch_*.json"))


def write_validation(folder: Path, validation: Validation) -> None:
    """Write the validation of an epoch into a run folder, in place of an earlier one of that epoch."""
    path = validation_path(folder, validation.epoch)
    path.parent.mkdir(exist_ok=True)
    _replace(path, json.dumps(asdict(validation), separators=(",", ":")) + "\n")


def read_validations(folder: Path) -> tuple[Validation, ...]:
    """The validations of a run folder, by epoch.

    Raises:
        DataError: a file is broken.
    """
    validations = []
    for path in _validation_paths(folder):
        with readable(path, "a validation"):
            validations.append(parse_validation(json.loads(path.read_bytes())))
    return tuple(validations)


def parse_validation(content: Mapping[str, Any]) -> Validation:
    """A validation from JSON.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is not one.
    """

    def rows(grid: Sequence[Sequence[int]]) -> Rows:
        return tuple(tuple(map(int, row)) for row in grid)

    return Validation(
        epoch=int(content["epoch"]),
        step=int(content["step"]),
        results={str(name): QueryResult(**_checked(result)) for name, result in content["results"].items()},
        shown=tuple(
            ShownQuery(
                id=query["id"],
                input=rows(query["input"]),
                target=rows(query["target"]),
                steps=tuple(map(rows, query["steps"])),
                prediction=rows(query["prediction"]),
            )
            for query in content["shown"]
        ),
    )
