"""What a run would take, measured with its own steps; nothing is written."""

import resource
import sys
import time
from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from arcdist.config import Config
from arcdist.training.curriculum import DynamicMemoryThreshold
from arcdist.training.session import Session, build_session
from arcdist.training.step import StepSettings, train_step

_TIMED_BATCHES = 4


def dry_run(config: Config) -> None:
    """Build everything, train on the longest batch and on a few others, and print what it took.

    Raises:
        OutOfMemoryError: by way of the caller, if the longest batch does not fit.
    """
    session = build_session(config)
    lengths = session.training.queries["length"][:]
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-config.train.batch_size :]
    _run(session, [longest])
    typical = session.training.batches.batches(0)[:_TIMED_BATCHES]
    queries, tokens, seconds = _run(session, typical)

    total, trainable = session.engines.qwen.parameter_counts()
    grid, refiner = (engine.parameter_counts()[1] for engine in (session.engines.grid, session.engines.refiner))
    steps = session.steps_per_epoch
    per_epoch = seconds / len(typical) * steps
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Dry run: no file was written")
    table.add_row("device", f"{session.device}, precision {config.train.precision}")
    table.add_row("Qwen parameters", f"{total:,} in all, {trainable:,} trained")
    table.add_row("agent, solver, EFE, refiner", f"{grid + refiner:,} trained")
    table.add_row("peak memory, longest batch included", f"{_peak_memory(session.device) / 2**30:.2f} GiB")
    table.add_row("pace", f"{queries / seconds:,.1f} queries/s, {tokens / seconds:,.0f} tokens/s")
    table.add_row(f"an epoch of {steps} steps", f"{per_epoch:,.0f} s, without validation")
    table.add_row(f"{config.train.epochs} epochs", f"{per_epoch * config.train.epochs / 60:,.1f} min")
    Console().print(table)


def _run(session: Session, batches: Sequence[Sequence[int]]) -> tuple[int, int, float]:
    """Train on these rows; gives the queries, the tokens and the seconds."""
    queries = tokens = 0
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
    # Each step ends with a transfer to the host, so the device is done.
    return queries, tokens, time.perf_counter() - start


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
