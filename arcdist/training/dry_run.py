"""What a run would take, measured with its own steps; nothing is written."""

from rich import box
from rich.console import Console
from rich.table import Table

from arcdist.config import Config
from arcdist.training.session import build_session
from arcdist.training.trial import longest_batch, run_steps, worst_peak_bytes

_TIMED_BATCHES = 4


def dry_run(config: Config) -> None:
    """Build everything, train on the longest batch and on a few others, and print what it took.

    Raises:
        OutOfMemoryError: by way of the caller, if the longest batch does not fit.
    """
    session = build_session(config)
    run_steps(session, [longest_batch(session)])
    pace = run_steps(session, session.training.batches.batches(0)[:_TIMED_BATCHES])

    total, trainable = session.engines.qwen.parameter_counts()
    grid, refiner = (engine.parameter_counts()[1] for engine in (session.engines.grid, session.engines.refiner))
    steps = session.steps_per_epoch
    per_epoch = pace.seconds / pace.steps * steps
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Dry run: no file was written")
    table.add_row("device", f"{session.device}, precision {config.train.precision}")
    table.add_row("Qwen parameters", f"{total:,} in all, {trainable:,} trained")
    table.add_row("agent, solver, EFE, refiner", f"{grid + refiner:,} trained")
    table.add_row("peak memory, longest batch included", f"{worst_peak_bytes(session.device) / 2**30:.2f} GiB")
    table.add_row("pace", f"{pace.queries / pace.seconds:,.1f} queries/s, {pace.tokens / pace.seconds:,.0f} tokens/s")
    table.add_row(f"an epoch of {steps} steps", f"{per_epoch:,.0f} s, without validation")
    table.add_row(f"{config.train.epochs} epochs", f"{per_epoch * config.train.epochs / 60:,.1f} min")
    Console().print(table)
