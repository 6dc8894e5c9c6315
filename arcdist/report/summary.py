"""The line that a report begins with, how far the run came, and what it cost."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcdist.report.log_lines import LogEntry, ending, resumptions
from arcdist.tracking.run_record import RunRecord
from arcdist.tracking.wording import DASH, counted, duration, number, percent

_ALIVE_SECONDS = 60
"""A run writes its heartbeats each second."""


def summary(record: RunRecord) -> str:
    """The outcome in one plain sentence."""
    return "; ".join(part for part in (_outcome(record), _floor(record), _effort(record)) if part) + "."


def standing(record: RunRecord, log: list[LogEntry], now: datetime) -> str:
    """How far the run came, whether it goes on, and how often it was resumed."""
    ended, planned = len(record.epochs), record.config.get("train.epochs")
    resumed = resumptions(log)
    times = {0: "", 1: " It was resumed once."}.get(resumed, f" It was resumed {resumed} times.")
    steps = f"{number(last_known(record.steps, 'step'))} steps" if record.steps else "no logged step"
    if planned is None or ended >= planned:
        return f"Complete: {counted(ended, 'epoch')}, {steps}.{times}"
    so_far = f"Not complete: {ended} of {counted(planned, 'epoch')} ended, {steps} logged."
    if said := ending(log):
        return f"{so_far}{times} The log ends with: {said}"
    seen = last_sign_of_life(Path(record.place))
    if seen and (now - seen).total_seconds() < _ALIVE_SECONDS:
        ago = f"{(now - seen).total_seconds():.0f} s before this page was made"
        return f"{so_far} It may be going on: its last sign of life is of {ago}.{times}"
    since = f" Its last sign of life is of {seen:%Y-%m-%d %H:%M} UTC." if seen else ""
    return f"{so_far}{since} It was not going on when this page was made.{times}"


def costs(record: RunRecord) -> list[tuple[str, str]]:
    """Time and cost, a name and a value each; what the run does not know is a dash."""
    elapsed = last_known((*record.steps, *record.epochs), "time/elapsed_s")
    hours = last_known((*record.steps, *record.epochs), "time/device_hours")
    exact = exact_count(record)
    paces = [epoch["pairs_per_s"] for epoch in record.epochs if epoch.get("pairs_per_s") is not None]
    of_epochs = f"{min(paces):,.0f} and {max(paces):,.0f}" if paces else DASH
    paces = paces or [step["pairs_per_s"] for step in record.steps if step.get("pairs_per_s") is not None]
    return [
        ("elapsed", duration(elapsed)),
        ("device-hours", number(hours, ".3g")),
        ("exact grids per device-hour", number(exact / hours if exact is not None and hours else None, ",.1f")),
        ("training queries a second, mean", number(sum(paces) / len(paces) if paces else None)),
        ("slowest and fastest epoch, queries a second", of_epochs),
    ]


def exact_count(record: RunRecord) -> int | None:
    """Exact queries of the last validation; none where it is not known query by query."""
    if not record.validations:
        return None
    return sum(result.exact for result in record.validations[-1].results.values())


def last_known(records: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The largest value under a key that only grows; none where no record has one."""
    return max((record[key] for record in records if record.get(key) is not None), default=None)


def last_sign_of_life(folder: Path) -> datetime | None:
    """When a run last wrote a heartbeat or a step; in UTC."""
    files = [*(folder / "heartbeats").glob("*.json"), folder / "steps.jsonl"]
    times = [path.stat().st_mtime for path in files if path.exists()]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _outcome(record: RunRecord) -> str:
    scored = [epoch for epoch in record.epochs if epoch.get("val/exact") is not None]
    if not scored:
        loss = [step["loss"] for step in record.steps if step.get("loss") is not None]
        progress = f", loss {loss[0]:.3f} at first and {loss[-1]:.3f} now" if loss else ""
        return f"No validation yet: {counted(len(record.epochs), 'epoch')} ended{progress}"
    last, planned = scored[-1], record.config.get("train.epochs")
    done = last["epoch"] + 1
    after = f"{done} of {planned} epochs" if planned is not None and done < planned else counted(done, "epoch")
    exact = exact_count(record)
    if exact is None or record.validations[-1].epoch != last["epoch"]:
        outcome = f"{percent(last['val/exact'])} of the validation queries exact after {after}"
    else:
        queries = counted(len(record.validations[-1].results), "validation query")
        outcome = f"{exact:,} of {queries} exact ({percent(last['val/exact'])}) after {after}"
    best = max(scored, key=lambda epoch: (epoch["val/exact"], epoch.get("val/cell") or 0.0))
    if best["val/exact"] > last["val/exact"]:
        outcome += f" (at best {percent(best['val/exact'])}, after {counted(best['epoch'] + 1, 'epoch')})"
    return outcome


def _floor(record: RunRecord) -> str:
    floor = last_known(record.epochs, "floor/copy_exact")
    return "" if floor is None else f"copying the input solves {percent(floor)}"


def _effort(record: RunRecord) -> str:
    elapsed = last_known((*record.steps, *record.epochs), "time/elapsed_s")
    device, processes = record.identity.device, record.identity.processes
    if device == "cpu":
        place = "one CPU" if processes == 1 else f"{processes} CPU processes"
    else:
        place = f"one {device}" if processes == 1 else f"{processes} × {device}"
    return f"on {place}" if elapsed is None else f"{duration(elapsed)} on {place}"
