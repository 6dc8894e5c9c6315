"""Training steps that are run only to measure what they take: nothing of them is kept."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import distributed

from arcdist.checkpoint.state import take_snapshot
from arcdist.config import Config
from arcdist.distributed.collectives import is_distributed
from arcdist.engine import count_weights
from arcdist.engine.platform import device_name
from arcdist.models import training_flops, writing_flops
from arcdist.training.session import Session, build_session
from arcdist.training.step import StepSettings, train_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What steps took, over all processes."""

    steps: int
    queries: int
    tokens: int
    seconds: float
    flops: float
    """Operations of Qwen, as `training_flops` and `writing_flops` count them, in reading what it has read."""
    skipped: int
    """Steps that changed nothing, because a loss or a gradient was not finite."""


def run_steps(session: Session, batches: Sequence[Sequence[int]], epoch: int = 0) -> Pace:
    """Train on batches of rows, timed. Each step ends with a transfer to the host, so the device is done.

    The session's models do learn. All processes call it together.

    Args:
        session: whose models are trained.
        batches: rows of its training queries, one sequence a step.
        epoch: whose contexts and augmentations the queries are seen with.
    """
    queries = tokens = skipped = 0
    read: list[int] = []
    start = time.perf_counter()
    for number, batch in enumerate(session.training.load(batches, epoch, session.device)):
        settings = StepSettings(config=session.config, number=number, size_weight=1.0, memory_threshold=0.0)
        noise = session.refinement_noise(batch, epoch)
        if session.models.qwen.every == 1:
            read += batch.partition.rows
        else:  # The others' prompts were kept from an earlier batch. Asking which waits for the device.
            places = session.models.prompts.lookup(batch.ids, number).missing.tolist()
            read += [batch.partition.rows[place] for place in places]
        report = train_step(batch, session.models, session.engines, noise, settings)
        queries += report.queries
        tokens += report.tokens
        skipped += not report.finite
    seconds = time.perf_counter() - start
    flops = _flops(session, read, epoch)
    return Pace(steps=len(batches), queries=queries, tokens=tokens, seconds=seconds, flops=flops, skipped=skipped)


def _flops(session: Session, rows: Sequence[int], epoch: int) -> float:
    """Operations of Qwen, over all processes, for training queries that it reads, and whose outputs it may write."""
    qwen, queries = session.models.qwen, session.training.queries
    adapters = count_weights(qwen.trainable_parameters()["lora"])
    flops = training_flops(qwen.body.config, adapters, queries.lengths(epoch)[rows].tolist())
    if qwen.lm_head is not None:
        head = list(qwen.lm_head.parameters())
        written = int(queries.output_tokens[rows].sum())
        flops += writing_flops(count_weights(head), written, is_trained=any(p.requires_grad for p in head))
    return flops


@dataclass(frozen=True, kw_only=True, slots=True)
class LongestBatch:
    """The `train.batch_size` training queries that need most memory as one batch: those sorted last into batches."""

    epoch: int
    """In which they are that long: contexts that are drawn differ from epoch to epoch."""
    rows: list[int]
    tokens: int
    """That Qwen reads of the longest, its output included if it learns to write it."""


def longest_batch(session: Session) -> LongestBatch:
    """The longest batch that any epoch of the run could have; with a time budget, any of the first `train.epochs`."""
    queries, size = session.training.queries, session.config.train.batch_size
    by_side = session.config.agent.views_per_reading > 1
    longest = None
    for epoch in range(session.config.train.epochs if queries.drawn.any() else 1):
        rows = np.argsort(queries.sizes(epoch, by_side=by_side), kind="stable")[-size:].tolist()
        tokens = int(queries.lengths(epoch)[rows].max())
        if longest is None or tokens > longest.tokens:
            longest = LongestBatch(epoch=epoch, rows=rows, tokens=tokens)
    assert longest is not None
    return longest


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the GPU's allocator, or all of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def benchmark(config: Config, steps: int) -> None:
    """Train so many steps after a warm-up, and print pace, memory and the share of the device's measured rate.

    Raises:
        OutOfMemoryError: by way of the caller, if a batch does not fit.
    """
    session, warm_up = build_session(config), 5
    epoch = session.training.batches.batches(0)
    batches = (epoch * (1 + (warm_up + steps) // len(epoch)))[: warm_up + steps]
    run_steps(session, batches[:warm_up])
    pace = run_steps(session, batches[warm_up:])
    # The first gathering may set things up. Writing what was gathered happens beside the training.
    take_snapshot(session, {})
    start = time.perf_counter()
    snapshot = take_snapshot(session, {})
    saving = time.perf_counter() - start
    size = snapshot.size if snapshot else 0  # Process 0 alone has one, and prints.
    every = config.output.save_every
    share = saving / (saving + every * pace.seconds / pace.steps)
    processes = session.accelerator.num_processes
    dtype = session.engines.precision.dtype or torch.float32
    rate = _measured_rate(session.device, dtype)
    used = pace.flops / pace.seconds / processes
    _print_table(
        f"{pace.steps} steps of {config.train.batch_size}",
        {
            "device": f"{processes} × {device_name(session.device)}, precision {config.train.precision}",
            "pace": f"{pace.queries / pace.seconds:,.1f} queries/s, {pace.tokens / pace.seconds:,.0f} tokens/s",
            "peak memory of a process": _largest_peak(session.device),
            f"{str(dtype).removeprefix('torch.')} products, measured": f"{rate / 1e12:.3g} TFLOP/s a device",
            "Qwen's operations": f"{used / 1e12:.3g} TFLOP/s a device, {used / rate:.1%} of that",
            "copy for a checkpoint": f"{saving:.2f} s, {size / 1e6:,.1f} MB: {share:.2%} of each {every} steps",
        },
    )


def dry_run(config: Config) -> None:
    """Build everything, train on the longest batch and on a few others, and print what it took.

    Raises:
        OutOfMemoryError: by way of the caller, if the longest batch does not fit.
    """
    session = build_session(config)
    longest = longest_batch(session)
    run_steps(session, [longest.rows], longest.epoch)
    pace = run_steps(session, session.training.batches.batches(0)[:4])
    total, trainable = session.engines.qwen.parameter_counts()
    grid, refiner = (engine.parameter_counts()[1] for engine in (session.engines.grid, session.engines.refiner))
    steps = session.steps_per_epoch
    per_epoch = pace.seconds / pace.steps * steps
    epochs, minutes = config.train.epochs, config.train.budget_minutes
    if minutes is None:
        run = {f"{epochs} epochs": f"{per_epoch * epochs / 60:,.1f} min"}
    else:
        run = {f"{minutes:g} minutes": f"{60 * minutes / per_epoch:,.1f} epochs"}
    _print_table(
        "Dry run: no file was written",
        {
            "device": f"{session.device}, precision {config.train.precision}",
            "Qwen parameters": f"{total:,} in all, {trainable:,} trained",
            "agent, solver, EFE, refiner": f"{grid + refiner:,} trained",
            "peak memory, longest batch included": _largest_peak(session.device),
            "pace": f"{pace.queries / pace.seconds:,.1f} queries/s, {pace.tokens / pace.seconds:,.0f} tokens/s",
            f"an epoch of {steps} steps": f"{per_epoch:,.0f} s, without validation",
            **run,
        },
    )


def _largest_peak(device: torch.device) -> str:
    """`peak_bytes` of the process that has held most. All processes call it together."""
    peak = torch.tensor(peak_bytes(device), device=device)
    if is_distributed():
        distributed.all_reduce(peak, distributed.ReduceOp.MAX)
    return f"{int(peak) / 2**30:.2f} GiB"


def _measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of large square matrix products on this device."""
    side = {"cuda": 8192, "mps": 2048, "cpu": 1024}[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for products in (2, 20):  # The first two warm up.
        start = time.perf_counter()
        for _ in range(products):
            product = left @ right
        product[0, 0].item()  # Waits for the device.
        seconds = time.perf_counter() - start
    return 2.0 * side**3 * products / seconds


def _print_table(title: str, rows: dict[str, str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=title)
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
