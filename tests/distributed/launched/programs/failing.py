"""launch/train.py, in which the backward pass of the engine `FAILS` raises in the third step, on rank 1 or another."""

import os
import runpy
import sys
import time
from pathlib import Path

from arcdist.cli import quick_imports
from arcdist.distributed import rank

with quick_imports():
    from arcdist.training import loop

TRAIN = Path(__file__).resolve().parents[4] / "launch" / "train.py"
NOTES = Path(os.environ["NOTES"])

train_step = loop.train_step


def fail(*_arguments, **_keywords):
    (NOTES / "failed_at").write_text(repr(time.time()))
    raise RuntimeError("boom")


def failing_step(batch, models, engines, noise, settings):
    if settings.number == 2 and rank() == int(os.environ.get("FAILING_RANK", "1")):
        engines.by_name()[os.environ["FAILS"]].backward = fail
    return train_step(batch, models, engines, noise, settings)


loop.train_step = failing_step
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
