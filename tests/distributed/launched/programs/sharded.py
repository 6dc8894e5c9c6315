"""launch/train.py; after each step each process also notes what it holds of Qwen's frozen base, and what that is."""

import json
import os
import runpy
import sys
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import load_file

from arcdist.distributed import rank
from arcdist.training import loop

TRAIN = Path(__file__).resolve().parents[4] / "launch" / "train.py"
NOTES = Path(os.environ["NOTES"]) / f"rank_{rank():05d}.jsonl"

train_step = loop.train_step


def noted_step(batch, models, *arguments):
    report = train_step(batch, models, *arguments)
    frozen = {name: p for name, p in models.qwen.body.named_parameters() if not p.requires_grad}
    held = {name: [p.ds_numel, p.numel(), p.ds_tensor.numel()] for name, p in frozen.items()}
    on_disk = load_file(Path(os.environ["MODEL"]) / "model.safetensors")
    different = []
    for name, parameter in frozen.items():
        with deepspeed.zero.GatheredParameters(parameter):
            if not torch.equal(parameter, on_disk["model." + name.replace(".base_layer.", ".")]):
                different.append(name)
    with NOTES.open("a") as file:
        file.write(json.dumps({"held": held, "different": different}) + "\n")
    return report


loop.train_step = noted_step
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
