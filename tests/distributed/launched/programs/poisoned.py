"""launch/train.py, in which a number is NaN on one process in some steps.

`POISON` gives `[part, rank]` by the steps done before. The part `features` is an input; `qwen`, `grid` and `refiner`
are engines, whose backward pass then begins with NaN while all losses are finite.
"""

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

from arcdist.cli import quick_imports
from arcdist.distributed import rank, world_size

with quick_imports():
    import torch

    from arcdist.training import loop

TRAIN = Path(__file__).resolve().parents[4] / "launch" / "train.py"
POISON = {int(step): where for step, where in json.loads(os.environ["POISON"]).items()}

train_step = loop.train_step


def with_poisoned_features(batch):
    first, *others = batch.queries
    features = torch.full_like(first.inputs.features, torch.nan)
    return replace(batch, queries=(replace(first, inputs=replace(first.inputs, features=features)), *others))


def poison_backward(engine):
    backward = engine.backward

    def poisoned(tensor, gradient=None, *, is_last=True):
        engine.backward = backward
        if gradient is None:
            backward(tensor * torch.nan, is_last=is_last)
        else:
            backward(tensor, gradient * torch.nan, is_last=is_last)

    engine.backward = poisoned


def poisoned_step(batch, models, engines, noise, settings):
    part, on_rank = POISON.get(settings.number, (None, None))
    if part is not None and rank() == on_rank % world_size():
        if part == "features":
            batch = with_poisoned_features(batch)
        else:
            poison_backward(engines.by_name()[part])
    return train_step(batch, models, engines, noise, settings)


loop.train_step = poisoned_step
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
