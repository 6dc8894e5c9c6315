"""The pace of a configuration beside what its device can do at best."""

import time

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from arcdist.config import Config
from arcdist.engine.device import device_name
from arcdist.training.session import build_session
from arcdist.training.state import take_snapshot
from arcdist.training.trial import run_steps, worst_peak_bytes

WARM_UP_STEPS = 5
_SIDE = {"cuda": 8192, "mps": 2048, "cpu": 1024}
_PRODUCTS = 20


def benchmark(config: Config, steps: int) -> None:
    """Train so many steps after a warm-up, and print pace, memory and the share of the device's measured rate.

    Raises:
        OutOfMemoryError: by way of the caller, if a batch does not fit.
    """
    session = build_session(config)
    batches = session.training.batches.batches(0)
    batches = (batches * (1 + (WARM_UP_STEPS + steps) // len(batches)))[: WARM_UP_STEPS + steps]
    run_steps(session, batches[:WARM_UP_STEPS])
    pace = run_steps(session, batches[WARM_UP_STEPS:])
    # The first gathering may set things up. What follows it, writing, is done while training goes on.
    take_snapshot(session, {})
    start = time.perf_counter()
    snapshot = take_snapshot(session, {})
    saving = time.perf_counter() - start
    share = saving / (saving + config.output.save_every * pace.seconds / pace.steps)
    processes = session.accelerator.num_processes
    rate, name = measured_rate(session.device, session.engines.precision.dtype or torch.float32)
    used = pace.flops / pace.seconds / processes

    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=f"{pace.steps} steps of {config.train.batch_size}")
    device = device_name(session.device)
    table.add_row("device", f"{processes} × {device}, precision {config.train.precision}")
    table.add_row("pace", f"{pace.queries / pace.seconds:,.1f} pairs/s, {pace.tokens / pace.seconds:,.0f} tokens/s")
    table.add_row("peak memory of a process", f"{worst_peak_bytes(session.device) / 2**30:.2f} GiB")
    table.add_row(f"{name} products, measured", f"{rate / 1e12:.3g} TFLOP/s a device")
    table.add_row("Qwen's operations", f"{used / 1e12:.3g} TFLOP/s a device, {used / rate:.1%} of that")
    every = config.output.save_every
    table.add_row(
        "copy for a checkpoint", f"{saving:.2f} s, {snapshot.size / 1e6:,.1f} MB: {share:.2%} of each {every} steps"
    )
    Console().print(table)


def measured_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second of large matrix products on this device, and what was multiplied."""
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def run(products: int) -> float:
        start = time.perf_counter()
        for _ in range(products):
            product = left @ right
        product[0, 0].item()  # Waits for the device.
        return time.perf_counter() - start

    run(2)
    return 2.0 * side**3 * _PRODUCTS / run(_PRODUCTS), str(dtype).removeprefix("torch.")
