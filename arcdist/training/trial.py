"""Training steps for the sake of what they take: nothing of them is kept."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from arcdist.distributed.exchange import several_processes
from arcdist.models import training_flops
from arcdist.training.curriculum import DynamicMemoryThreshold
from arcdist.training.session import Session
from arcdist.training.step import StepSettings, train_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What steps took, over all processes."""

    steps: int
    queries: int
    tokens: int
    seconds: float
    flops: float
    """Operations of Qwen, as `training_flops` counts them."""
    skipped: int
    """Steps that changed nothing, because a loss or a gradient was not finite."""


def run_steps(session: Session, batches: Sequence[Sequence[int]]) -> Pace:
    """Train on batches of rows, timed. Each step ends with a transfer to the host, so the device is done."""
    queries = tokens = skipped = 0
    start = time.perf_counter()
    for number, batch in enumerate(session.training.load(batches, epoch=0, device=session.device)):
        settings = StepSettings(
            number=number,
            size_weight=1.0,
            memory_gate=DynamicMemoryThreshold(),
            reward=session.config.reward,
            seed=session.config.train.seed,
        )
        noise = session.refinement_noise(batch, epoch=0)
        report = train_step(batch, session.models, session.engines, noise, settings)
        queries += report.queries
        tokens += report.tokens
        skipped += not report.finite
    seconds = time.perf_counter() - start
    lengths = session.training.queries["length"][:]
    _, trained = session.engines.qwen.parameter_counts()
    flops = training_flops(session.models.qwen.body.config, trained, (lengths[row] for rows in batches for row in rows))
    return Pace(steps=len(batches), queries=queries, tokens=tokens, seconds=seconds, flops=flops, skipped=skipped)


def longest_batch(session: Session) -> list[int]:
    """The rows that need most memory as one batch."""
    lengths = session.training.queries["length"][:]
    return sorted(range(len(lengths)), key=lengths.__getitem__)[-session.config.train.batch_size :]


def worst_peak_bytes(device: torch.device) -> int:
    """`peak_bytes` of the process that has held most."""
    peak = torch.tensor(peak_bytes(device), device=device)
    if several_processes():
        distributed.all_reduce(peak, distributed.ReduceOp.MAX)
    return int(peak)


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the GPU's allocator, or all of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
