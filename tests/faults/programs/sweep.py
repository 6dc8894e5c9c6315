"""Saves a new best and a checkpoint once for each operation that this takes, with a fault at it: what is left of each.

Is given what faults do, and after each how many checkpoints are kept; writes a JSON list to standard output. Each save
happens in a process forked for it, which spares it the imports.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from faults import Fault, Faults

from arcdist.checkpoint.resume import find_start
from arcdist.checkpoint.store import (
    Checkpointing,
    Snapshot,
    checkpoints,
    flaw,
    load_checkpoint,
    save_checkpoint,
    step_folder,
)
from arcdist.config import OutputConfig
from arcdist.errors import ArcdistError, SaveError


def snapshot(step: int) -> Snapshot:
    weights = {"weight": torch.full((50,), float(step))}
    numbers = dict.fromkeys(("epoch", "batch", "skipped", "skipped_in_a_row", "gradients_checked"), 0)
    parts = ("memory_gate", "health", "cost", "since_log", "since_epoch", "steps_of_schedules", "loss_scale")
    other = ("averaged_agent", "prompts", "config", "data", "base")
    state = {"step": step, "seconds": 0.0, **numbers, **{name: {} for name in (*parts, *other)}, "epochs": []}
    return Snapshot(weights=weights, moments={"weight@exp_avg": torch.ones(40)}, prompts={}, state=state)


def save(run: Path, step: int, keep_last: int) -> str:
    """Save a new best and a checkpoint, as a run does; what went wrong."""
    saver = Checkpointing(run, OutputConfig(keep_last=keep_last))
    saver.write(snapshot(step), [run / "best", step_folder(run / "checkpoints", step)])
    try:
        saver.finish()
    except SaveError as error:
        return str(error)
    return ""


def save_in_new_process(run: Path, step: int, keep_last: int, fault: Fault) -> int:
    """The wait status of a process that saves: 0, or that of exit code 1 if it fails. `RUN.details` has the details."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    faults = Faults(run, fault)
    faults.install()
    said = save(run, step, keep_last)
    run.with_suffix(".details").write_text(json.dumps({"operations": faults.operations, "said": said}))
    os._exit(1 if said else 0)


def whole_step(folder: Path) -> int | None:
    """The step of a checkpoint; none where it is not whole."""
    return load_checkpoint(folder).state["step"] if flaw(folder) is None else None


def look(run: Path) -> list[int | None]:
    """Steps of the newest checkpoint and of the best."""
    newest = checkpoints(run / "checkpoints")[-1:]
    return [whole_step(newest[0]) if newest else None, whole_step(run / "best")]


def look_as_resuming(run: Path) -> list[int | None]:
    """The same once a resumed run has put the folder in order."""
    try:
        start = find_start(str(run), "newest")
    except ArcdistError:
        return [None, whole_step(run / "best")]
    start.lock.release()
    return [start.snapshot.state["step"] if start.snapshot else None, whole_step(run / "best")]


def sweep(place: Path, do: str, keep_last: int) -> list[dict[str, Any]]:
    before, now = place / "before", 3 * (keep_last + 1)
    for step in range(3, now, 3):
        save_checkpoint(step_folder(before / "checkpoints", step), snapshot(step))
    save_checkpoint(before / "best", snapshot(now - 3))

    shutil.copytree(before, place / "run_0")
    save_in_new_process(place / "run_0", now, keep_last, Fault())
    operations = json.loads((place / "run_0.details").read_text())["operations"]
    outcomes = []
    for number, operation in enumerate(operations, start=1):
        run = place / f"run_{number}"
        shutil.copytree(before, run)
        status = save_in_new_process(run, now, keep_last, Fault(do=do, at=number))
        details = run.with_suffix(".details")
        outcome = {
            "do": do,
            "keep_last": keep_last,
            "operation": operation,
            "status": status,
            "said": json.loads(details.read_text())["said"] if details.exists() else "",
            "left": look(run),
            "resumed": look_as_resuming(run),
        }
        save(run, now, keep_last)
        outcome["again"] = look(run)
        outcome["files"] = sorted(path.name for path in (*run.glob("*"), *run.glob("checkpoints/*")))
        outcomes.append(outcome)
    return outcomes


# What a disk forgets is put in here; that it is slow to remember is not wanted.
memory = Path("/dev/shm")
outcomes = []
for do, keep_last in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        outcomes += sweep(Path(place), do, int(keep_last))
sys.stdout.write(json.dumps(outcomes))
