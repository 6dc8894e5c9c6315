"""The run in TensorBoard: the numbers of steps and epochs, and the shown queries, in `tensorboard/` of its folder."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arcdist.errors import PlatformError
from arcdist.tracking.metrics import Record, Validation
from arcdist.tracking.mirror import Mirror
from arcdist.tracking.rows import Row, make_row, png_of, rows_of, strip_of
from arcdist.tracking.run_folder import Identity

FOLDER = "tensorboard"

_RGB = 3
"""TensorBoard's number for coloured pictures."""


def require_tensorboard() -> None:
    """See that it is installed.

    Raises:
        PlatformError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise PlatformError(
            "tracking.tensorboard is true, but tensorboard is not installed: "
            "pip install 'arcdist[tensorboard]', or --tracking.tensorboard false."
        )


class TensorBoardMirror(Mirror):
    """Writes events. A resumed run writes them anew from its records, so that each step stands there once."""

    name = "TensorBoard"
    remedy = "its numbers in steps.jsonl and metrics.json, its queries in validation/"

    def __init__(self, folder: Path, identity: Identity) -> None:
        """Mirror the run in `folder`; nothing happens before `open`.

        Raises:
            PlatformError: tensorboard is not installed.
        """
        require_tensorboard()
        self._folder = folder / FOLDER
        self._started = datetime.fromisoformat(identity.started).timestamp()
        self._writer: Any = None

    def open(self) -> None:
        """Begin a file of events, in place of those of earlier processes."""
        from torch.utils.tensorboard import SummaryWriter

        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = SummaryWriter(str(self._folder), flush_secs=10)

    def catch_up(self, steps: Sequence[Record], epochs: Sequence[Record], validations: Sequence[Validation]) -> None:
        """Write the records that stand in the run folder."""
        for row in rows_of(steps, epochs, validations):
            self._write(row)

    def log_step(self, record: Record, *, ends_epoch: bool) -> None:  # noqa: ARG002
        """Write a logged step."""
        self._write(make_row(int(record["step"]), record))  # type: ignore[arg-type]

    def log_epoch(self, step: int, record: Record, validation: Validation | None, plot: Path | None) -> None:  # noqa: ARG002
        """Write the numbers of an epoch and the shown queries of its validation; the plot TensorBoard has itself."""
        self._write(make_row(step, None, record, validation))

    def log_best(self, folder: Path) -> None:
        """TensorBoard keeps no checkpoints."""

    def close(self, exit_code: int) -> None:  # noqa: ARG002
        """Write what is left."""
        self._writer.close()

    def interrupt(self) -> None:
        """It waits for the disk alone, which no one can hurry."""

    def kill(self) -> None:
        """Its threads end with the process."""

    def _write(self, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.numbers.items()
            if isinstance(value, int | float) and name != "step"
        ]
        for query in row.validation.shown if row.validation else ():
            strip = strip_of(query)
            image = Summary.Image(
                height=strip.height, width=strip.width, colorspace=_RGB, encoded_image_string=png_of(strip)
            )
            values.append(Summary.Value(tag=f"validation/{query.id}", image=image))
        # One event for all of a step: with one for each number a long run would be minutes in writing itself anew.
        self._writer.file_writer.add_summary(Summary(value=values), row.step, self._time(row.numbers))

    def _time(self, numbers: Mapping[str, Any]) -> float | None:
        """When it was, for what is written anew; none means now."""
        elapsed = numbers.get("time/elapsed_s", numbers.get("epoch/time/elapsed_s"))
        return None if elapsed is None else self._started + elapsed
