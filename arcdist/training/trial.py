"""Training steps that are run only to measure what they take: nothing of them is kept."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
import torch
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table
from torch import distributed

from arcdist.checkpoint.state import take_snapshot
from arcdist.config import Config
from arcdist.data.batch import Partition
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
    qwen_flops: float
    """Operations of Qwen, as `training_flops` and `writing_flops` count them, in reading what it has read."""
    agent_flops: float
    """Operations of the agent, as its `flops` counts them, on canvases with their padding."""
    skipped: int
    """Steps that changed nothing, because a loss or a gradient was not finite."""

    @property
    def step_seconds(self) -> float:
        """What a step took, a mean."""
        return self.seconds / self.steps


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
    partitions: list[Partition] = []
    start = time.perf_counter()
    for number, batch in enumerate(session.training.load(batches, epoch, session.device)):
        settings = StepSettings(config=session.config, number=number, size_weight=1.0, memory_threshold=0.0)
        noise = session.refinement_noise(batch, epoch)
        if session.models.qwen.every == 1:
            read += batch.partition.rows
        else:  # The others' prompts were kept from an earlier batch. Asking which waits for the device.
            places = session.models.prompts.lookup(batch.ids, number).missing.tolist()
            read += [batch.partition.rows[place] for place in places]
        partitions.append(batch.partition)
        report = train_step(batch, session.models, session.engines, noise, settings)
        queries += report.queries
        tokens += report.tokens
        skipped += not report.finite
    seconds = time.perf_counter() - start
    return Pace(
        steps=len(batches),
        queries=queries,
        tokens=tokens,
        seconds=seconds,
        qwen_flops=_qwen_flops(session, {epoch: read}),
        agent_flops=_agent_flops(session, partitions, epoch),
        skipped=skipped,
    )


def _qwen_flops(session: Session, read: Mapping[int, Sequence[int]]) -> float:
    """Operations of Qwen for the training queries that it reads in each epoch, and whose outputs it may write."""
    qwen, queries = session.models.qwen, session.training.queries
    adapters = count_weights(qwen.trainable_parameters()["lora"])
    lengths = [length for epoch, rows in read.items() for length in queries.lengths(epoch)[rows].tolist()]
    flops = training_flops(qwen.body.config, adapters, lengths)
    if qwen.lm_head is not None:
        head = list(qwen.lm_head.parameters())
        written = sum(int(queries.output_tokens[rows].sum()) for rows in read.values())
        flops += writing_flops(count_weights(head), written, is_trained=any(p.requires_grad for p in head))
    return flops


def _agent_flops(
    session: Session, partitions: Sequence[Partition], epoch: int, *, without_padding: bool = False
) -> float:
    """Operations of the agent for batches of training queries, over all processes.

    A canvas is as large as the largest working area on it, and has as many context pairs as the query with most. Under
    symmetries it is taken for a square, which it is unless all views on it lie the same way.
    """
    agent, config, queries = session.models.agent, session.config, session.training.queries
    tried = config.refiner.rewarded_share * config.refiner.draws
    areas, pairs = queries.areas.clip(max=config.agent.max_grid_size), queries.context_sizes(epoch)

    @cache
    def of_view(height: int, width: int, pairs: int) -> float:
        return agent.flops(height, width, pairs).training(agent.backward_share, tried)

    flops = 0.0
    for share in (share for partition in partitions for shares in partition.shares for share in shares):
        together = [[row] for row in share.rows] if without_padding else [list(share.rows)]
        for rows in together:
            height, width = areas[rows].max(axis=0).tolist()
            if config.data.augment.dihedral and not without_padding:
                height = width = max(height, width)
            flops += len(rows) * agent.views_per_reading * of_view(height, width, int(pairs[rows].max()))
    return flops


_COUNTED_EPOCHS = 200
"""What Qwen reads in so many epochs is counted one by one; those after them are like them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What the training of a whole run is expected to take, without validation."""

    epochs: float
    steps: float
    seconds: float
    qwen_flops: float
    agent_flops: float
    real_agent_flops: float
    """Those that padded cells and pairs have no part in."""


def forecast(session: Session, reading: Pace, keeping: Pace) -> Forecast:
    """Expect a whole run from the pace of some steps.

    Args:
        session: of the run.
        reading: the pace of steps in which Qwen reads every query.
        keeping: that of steps in which it reads none; if `qwen.every` is 1, there are none, and it is `reading`.
    """
    train, steps, queries = session.config.train, session.steps_per_epoch, session.training.queries
    budget = None if train.budget_minutes is None else 60.0 * train.budget_minutes
    more_seconds = max(0.0, reading.step_seconds - keeping.step_seconds)
    read: dict[int, list[int]] = {}
    seconds = 0.0
    for epoch, (in_epoch, due) in enumerate(_reads(session)):
        seconds += steps * (keeping.step_seconds + more_seconds * len(due) / in_epoch)
        read[epoch] = due.tolist()
        if epoch + 1 == _COUNTED_EPOCHS or (epoch + 1 == train.epochs if budget is None else seconds >= budget):
            break
    scale = train.epochs / len(read) if budget is None else budget / seconds
    epochs = scale * len(read)
    partition = session.training.partitioner(queries.lengths(0)).partition
    partitions = [partition(rows) for rows in session.training.batches.batches(0)[:steps]]
    return Forecast(
        epochs=epochs,
        steps=epochs * steps,
        seconds=scale * seconds,
        qwen_flops=scale * _qwen_flops(session, read),
        agent_flops=epochs * _agent_flops(session, partitions, 0),
        real_agent_flops=epochs * _agent_flops(session, partitions, 0, without_padding=True),
    )


def _reads(session: Session) -> Iterator[tuple[int, Int[np.ndarray, " _"]]]:
    """How many training queries each epoch has, and which rows of them Qwen reads: see `PromptCache`."""
    steps, every = session.steps_per_epoch, session.models.qwen.every
    read_in = np.full(len(session.training.queries), -every)
    for epoch in count():
        batches = session.training.batches.batches(epoch)[:steps]
        rows = np.concatenate(batches)
        step = epoch * steps + np.repeat(np.arange(steps), [len(batch) for batch in batches])
        is_due = step - read_in[rows] >= every
        read_in[rows[is_due]] = step[is_due]
        yield len(rows), rows[is_due]


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
    qwen, agent = (flops / pace.seconds / processes for flops in (pace.qwen_flops, pace.agent_flops))
    _print_table(
        f"{pace.steps} steps of {config.train.batch_size}",
        {
            "device": f"{processes} × {device_name(session.device)}, precision {config.train.precision}",
            "pace": f"{pace.queries / pace.seconds:,.1f} queries/s, {pace.tokens / pace.seconds:,.0f} tokens/s",
            "peak memory of a process": _largest_peak(session.device),
            f"{str(dtype).removeprefix('torch.')} products, measured": f"{rate / 1e12:.3g} TFLOP/s a device",
            "operations": f"{(qwen + agent) / 1e12:.3g} TFLOP/s a device, {(qwen + agent) / rate:.1%} of that",
            "of Qwen, of the agent": f"{qwen / 1e12:.3g}, {agent / 1e12:.3g} TFLOP/s",
            "copy for a checkpoint": f"{saving:.2f} s, {size / 1e6:,.1f} MB: {share:.2%} of each {every} steps",
        },
    )


def dry_run(config: Config, *, dollars_per_hour: float | None = None) -> None:
    """Build everything, train on the longest batch and on a few others, and print what these and a whole run take.

    Args:
        config: of the run.
        dollars_per_hour: price of all its devices together; None if no cost is to be printed.

    Raises:
        OutOfMemoryError: by way of the caller, if the longest batch does not fit.
    """
    session = build_session(config)
    longest = longest_batch(session)
    run_steps(session, [longest.rows], longest.epoch)
    session.models.prompts.load_state({}, {})  # So that Qwen reads every query.
    batches = session.training.batches.batches(0)[:4]
    pace = run_steps(session, batches)
    keeping = run_steps(session, batches) if config.qwen.every > 1 else pace  # Their prompts are kept by now.
    expected = forecast(session, pace, keeping)
    total, trainable = session.engines.qwen.parameter_counts()
    grid, refiner = (engine.parameter_counts()[1] for engine in (session.engines.grid, session.engines.refiner))
    if config.train.budget_minutes is None:
        run = {f"{config.train.epochs} epochs": f"{expected.seconds / 60:,.1f} min"}
    else:
        run = {f"{config.train.budget_minutes:g} minutes": f"{expected.epochs:,.1f} epochs"}
    if dollars_per_hour is not None:
        cost = dollars_per_hour * expected.seconds / 3600
        run[f"at ${dollars_per_hour:,.2f} an hour"] = f"${cost:,.2f}, without answering"
    _print_table(
        "Dry run: no file was written",
        {
            "device": f"{session.device}, precision {config.train.precision}",
            "Qwen parameters": f"{total:,} in all, {trainable:,} trained",
            "agent, solver, EFE, refiner": f"{grid + refiner:,} trained",
            "peak memory, longest batch included": _largest_peak(session.device),
            "longest batch": f"{len(longest.rows)} queries of up to {longest.tokens:,} tokens",
            "pace": f"{pace.queries / pace.seconds:,.1f} queries/s, {pace.tokens / pace.seconds:,.0f} tokens/s",
            **({} if keeping is pace else {"with kept prompts": f"{keeping.queries / keeping.seconds:,.1f} queries/s"}),
            f"an epoch of {session.steps_per_epoch} steps": (
                f"{expected.seconds / expected.epochs:,.0f} s, without validation"
            ),
            **run,
            "operations of a step, a mean": _operations(
                expected.qwen_flops / expected.steps, expected.agent_flops / expected.steps
            ),
            "operations of the run": _operations(expected.qwen_flops, expected.agent_flops),
            "the agent's on padding": f"{1.0 - expected.real_agent_flops / expected.agent_flops:.0%}",
        },
    )


def _operations(qwen: float, agent: float) -> str:
    """Operations of Qwen and of the agent, in words."""
    units = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9}
    unit, size = next((each for each in units.items() if qwen + agent >= each[1]), ("MFLOP", 1e6))
    return f"{(qwen + agent) / size:,.1f} {unit}: Qwen {qwen / size:,.1f}, agent {agent / size:,.1f}"


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
