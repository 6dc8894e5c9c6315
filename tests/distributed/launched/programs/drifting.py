"""launch/train.py, in which one weight of rank 1's agent moves by 1e-6 before the third step."""

import runpy
import sys
from pathlib import Path

from arcdist.cli import quick_imports
from arcdist.distributed import rank

with quick_imports():
    import torch

    from arcdist.training import loop

TRAIN = Path(__file__).resolve().parents[4] / "launch" / "train.py"

train_step = loop.train_step


def drifting_step(batch, models, engines, noise, settings):
    if settings.number == 2 and rank() == 1:
        with torch.no_grad():
            models.agent.from_prompt.weight[0, 0] += 1e-6
    return train_step(batch, models, engines, noise, settings)


loop.train_step = drifting_step
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
