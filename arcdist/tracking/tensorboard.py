"""The run in TensorBoard: the numbers of steps and epochs, and the shown queries, in `tensorboard/` of its folder."""

from datetime import datetime
from pathlib import Path
from typing import Any

from arcdist.tracking.mirror import Mirror, Row
from arcdist.tracking.run_folder import Identity

_RGB = 3
"""TensorBoard's number for coloured pictures."""


class TensorBoardMirror(Mirror):
    """Writes events. A resumed run writes them again from its records, so that each step is there once."""

    name = "TensorBoard"
    remedy = "its numbers in steps.jsonl and metrics.json, its queries in validation/"

    def __init__(self, folder: Path, identity: Identity) -> None:
        """Mirror the run in `folder`; nothing happens before `open`."""
        self._folder = folder / "tensorboard"
        self._started = datetime.fromisoformat(identity.started).timestamp()
        self._writer: Any = None

    def open(self) -> None:
        """Begin a file of events, in place of those of earlier processes."""
        from torch.utils.tensorboard import SummaryWriter

        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = SummaryWriter(str(self._folder), flush_secs=10)

    def log(self, row: Row) -> None:
        """Write the numbers of a step and of the epoch that ends with it, and the shown queries of its validation."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        from arcdist.tracking.grids import png, query_picture

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.numbers.items()
            if isinstance(value, int | float) and name != "step"
        ]
        for query in row.validation.shown if row.validation else ():
            picture = query_picture(query)
            image = Summary.Image(
                height=picture.height, width=picture.width, colorspace=_RGB, encoded_image_string=png(picture)
            )
            values.append(Summary.Value(tag=f"validation/{query.id}", image=image))
        # When it was logged, for what is written again after a resume; None means now.
        elapsed = row.numbers.get("time/elapsed_s", row.numbers.get("epoch/time/elapsed_s"))
        when = None if elapsed is None else self._started + elapsed
        # One event for the whole step: with one a number, writing a long run again would take minutes.
        self._writer.file_writer.add_summary(Summary(value=values), row.step, when)

    def close(self, exit_code: int) -> None:  # noqa: ARG002
        """Write the rest."""
        self._writer.close()
