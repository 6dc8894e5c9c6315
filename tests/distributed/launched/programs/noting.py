"""launch/train.py; each process also notes what it is given in each step, and how much of it Qwen reads."""

import json
import os
import runpy
import sys
from pathlib import Path

from arcdist.cli import quick_imports
from arcdist.distributed import rank

with quick_imports():
    from arcdist.training import loop, step

TRAIN = Path(__file__).resolve().parents[4] / "launch" / "train.py"
NOTES = Path(os.environ["NOTES"]) / f"rank_{rank():05d}.jsonl"

read: list[int] = []
train_step, read_prompts = loop.train_step, step.read_prompts


def noted_reading(*arguments, **keywords):
    reading = read_prompts(*arguments, **keywords)
    read.append(len(reading.rows) if reading.counts else 0)
    return reading


def noted_step(batch, *arguments):
    read.clear()
    report = train_step(batch, *arguments)
    dealt = zip(batch.shares, batch.queries, strict=True)
    own = [query for share, queries in dealt if not share.is_padding for query in queries.ids]
    with NOTES.open("a") as file:
        file.write(json.dumps({"batch": batch.ids, "own": own, "read": sum(read)}) + "\n")
    return report


loop.train_step, step.read_prompts = noted_step, noted_reading
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
