"""What `launch/report.py` writes: a run folder as one page."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from arcdist.analysis.page import picture, render
from arcdist.analysis.record import RunRecord, finite_values, read_run_folder
from arcdist.config import Config, load_config, recipe_names
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, reason
from arcdist.files import replacing
from arcdist.formatting import DASH, counted, duration, number, percent
from arcdist.tracking import plots
from arcdist.tracking.grids import DIFFERENCE, query_figure, right_cells, verdict_of
from arcdist.tracking.metrics import QueryResult, ShownQuery, Validation, task_of
from arcdist.tracking.run_folder import readable
from arcdist.training import health

REPORT = "report.html"

PANELS = {
    plots.draw_loss: "Training loss by step",
    plots.draw_accuracy: "Right cells, sizes and grids of each validation",
    plots.draw_exact: "Exact grids in training and validation by epoch",
    plots.draw_terms: "The terms of the EFE loss by step",
    plots.draw_reward: "Mean reward of the refiner by step",
    plots.draw_gradient: "Qwen's gradient norm by step",
    plots.draw_pace: "Training queries a second by step",
    plots.draw_learning_rates: "Learning rates by step",
}
MOST_PICTURES = 32
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ([A-Z]+) ?(.*)")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run folder, by default as `report.html` in there, and return its path.

    Raises:
        ConfigError: it is not a run folder, or the page cannot be written.
        DataError: the run has no logged step yet, or a file of it is broken.
    """
    path = folder / REPORT if output is None else output
    page = report_page(read_run_folder(folder))
    try:
        with replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written ({reason(error)}): choose another with --output FILE.") from error
    return path


def report_page(record: RunRecord) -> str:
    """The page of a run as HTML that needs no other file."""
    folder, now = Path(record.place), datetime.now(UTC)
    log = read_log(folder / "training.log")
    curves = plots.Curves(epochs=record.epochs, best=record.best, steps=record.steps)
    base, differing = differences(record)
    last = record.validations[-1] if record.validations else None
    ever = {query for validation in record.validations for query in exact_queries(validation)}
    queries = last.shown[:MOST_PICTURES] if last else ()
    return render(
        "report.html",
        {
            "title": f"{record.identity.name}: report of a run",
            "record": record,
            "config": (folder / "config.yaml").read_text(encoding="utf-8"),
            "made": f"{now:%Y-%m-%d %H:%M} UTC",
            "summary": summary(record),
            "progress": progress(record, log, now),
            "facts": facts(record),
            "base": base,
            "differences": differing,
            "flags": raised_flags(record.steps),
            "skipped": skipped_steps(record.steps),
            "replicas": replicas(record),
            "has_log": bool(log),
            "complaints": complaints(log),
            "panels": [picture(plots.panel_figure(panel, curves), alt) for panel, alt in PANELS.items()],
            "costs": costs(record),
            "last": last,
            "changes": changes(record.validations),
            "once": sorted(ever - set(exact_queries(last))) if last else [],
            "tasks": hardest_tasks(last) if last else [],
            "solved": {task_of(query) for query in ever},
            "most_hard": 12,
            "planning": planning_scores(last.shown) if last else [],
            "queries": [
                (query.id, verdict_of(query), picture(query_figure(query), f"Grids of {query.id}: {verdict_of(query)}"))
                for query in queries
            ],
            "difference": DIFFERENCE,
            **{function.__name__: function for function in (counted, duration, fmean, number, percent)},
        },
    )


class LogEntry(NamedTuple):
    """A message of the log; of a traceback, its last line is appended."""

    time: str
    level: str
    text: str


def read_log(path: Path) -> list[LogEntry]:
    """The messages of a `training.log`, long ones cut off; empty if there is no such file.

    Raises:
        DataError: it cannot be read.
    """
    with readable(path, "a log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    messages: list[list[str]] = []
    for line in lines:
        if match := _LOG_LINE.fullmatch(line):
            messages.append(list(match.groups()))
        elif messages and line.strip() and messages[-1][1] != "INFO":
            messages[-1][3:] = [line.strip()]
    return [LogEntry(time, level, _shorten(" … ".join(texts))) for time, level, *texts in messages]


def _shorten(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def complaints(log: Sequence[LogEntry]) -> list[list[LogEntry]]:
    """Warnings and errors; those that differ in numbers only together, in the order of their first ones."""
    kinds: dict[tuple[str, str], list[LogEntry]] = {}
    for entry in log:
        if entry.level not in ("INFO", "DEBUG"):
            kinds.setdefault((entry.level, re.sub(r"[\d.,]*\d", "0", entry.text)), []).append(entry)
    return list(kinds.values())


def summary(record: RunRecord) -> str:
    """The outcome in one plain sentence."""
    floor = max(finite_values(record.epochs, "floor/copy_exact"), default=None)
    device, processes = record.identity.device, record.identity.processes
    if device == "cpu":
        place = "one CPU" if processes == 1 else f"{processes} CPU processes"
    else:
        place = f"one {device}" if processes == 1 else f"{processes} × {device}"
    parts = (
        _outcome(record),
        "" if floor is None else f"copying the input solves {percent(floor)}",
        f"on {place}" if record.elapsed is None else f"{duration(record.elapsed)} on {place}",
    )
    return "; ".join(filter(None, parts)) + "."


def _outcome(record: RunRecord) -> str:
    scored = [epoch for epoch in record.epochs if epoch.get("val/exact") is not None]
    if not scored:
        losses = finite_values(record.steps, "loss")
        change = f", loss {losses[0]:.3f} at first and {losses[-1]:.3f} now" if losses else ""
        return f"No validation yet: {counted(len(record.epochs), 'epoch')} ended{change}"
    last, planned = scored[-1], _planned_epochs(record)
    done = last["epoch"] + 1
    after = f"{done} of {planned} epochs" if planned is not None and done < planned else counted(done, "epoch")
    share, exact = percent(last["val/exact"]), record.exact_queries
    if exact is None or record.validations[-1].epoch != last["epoch"]:
        outcome = f"{share} of the validation queries exact after {after}"
    else:
        queries = counted(len(record.validations[-1].results), "validation query")
        outcome = f"{exact:,} of {queries} exact ({share}) after {after}"
    best = max(scored, key=lambda epoch: (epoch["val/exact"], epoch.get("val/cell") or 0.0))
    if best["val/exact"] > last["val/exact"]:
        outcome += f" (at best {percent(best['val/exact'])}, after {counted(best['epoch'] + 1, 'epoch')})"
    return outcome


def _planned_epochs(record: RunRecord) -> int | None:
    """None if the run does not say, or ends by time."""
    return record.config.get("train.epochs") if record.config.get("train.budget_minutes") is None else None


def progress(record: RunRecord, log: Sequence[LogEntry], now: datetime) -> str:
    """How far the run came, whether it continues, and how often it was resumed."""
    ended, planned, minutes = len(record.epochs), _planned_epochs(record), record.config.get("train.budget_minutes")
    used = max(finite_values(record.epochs, "time/elapsed_s"), default=0.0) / 60
    resumed = sum(entry.text.startswith("Resumed from ") for entry in log)
    times = "" if not resumed else f" It was resumed {'once' if resumed == 1 else f'{resumed} times'}."
    steps = counted(max((step["step"] for step in record.steps), default=0), "step")
    if minutes is not None:
        # The loop compares float32, which may be rounded up.
        is_complete = used >= minutes * (1 - 1e-6)
        so_far = f"Not complete: {used:.1f} of {minutes:g} minutes when the last epoch ended, {steps} logged."
    else:
        is_complete = planned is None or ended >= planned
        so_far = f"Not complete: {ended} of {counted(planned or 0, 'epoch')} ended, {steps} logged."
    if is_complete:
        return f"Complete: {counted(ended, 'epoch')}, {steps}.{times}"
    endings = ("Interrupted", "Asked to make room", "Ended by Ctrl-C")
    if log and (log[-1].level in ("ERROR", "CRITICAL") or log[-1].text.startswith(endings)):
        return f"{so_far}{times} The log ends with: {log[-1].text}"
    folder = Path(record.place)
    files = [path for path in (*folder.glob("heartbeats/*.json"), folder / "steps.jsonl") if path.exists()]
    if not files:
        return f"{so_far} It was not training when this page was made.{times}"
    seen = datetime.fromtimestamp(max(path.stat().st_mtime for path in files), UTC)
    age = (now - seen).total_seconds()
    if age < 60:  # a run writes its heartbeats each second
        return f"{so_far} It may be training: its last sign of life was {age:.0f} s before this page was made.{times}"
    last = f"Its last sign of life was on {seen:%Y-%m-%d %H:%M} UTC."
    return f"{so_far} {last} It was not training when this page was made.{times}"


def facts(record: RunRecord) -> dict[str, str]:
    """What the run was."""
    identity, config = record.identity, {key: show_setting(value) for key, value in record.config.items()}
    return {
        "recipe": identity.recipe or "none: a configuration file",
        "data": f"{identity.source} ({config.get('data.split', DASH)})",
        "checksums of the tasks": _listed({role: digest[:12] for role, digest in identity.data.items()}),
        "validation queries": number(len(record.validations[-1].results) if record.validations else None),
        "Qwen": f"{config.get('qwen.model', DASH)}, LoRA rank {config.get('qwen.lora_r', DASH)}",
        "agent": f"{config.get('agent.kind', DASH)}, width {config.get('agent.hidden_dim', DASH)}, "
        f"{config.get('agent.max_steps', DASH)} planning steps",
        "batch size": config.get("train.batch_size", DASH),
        "seed": config.get("train.seed", DASH),
        "device": identity.device,
        "processes": str(identity.processes),
        "DeepSpeed": "no" if identity.zero_stage is None else f"ZeRO-{identity.zero_stage}",
        "precision": config.get("train.precision", DASH),
        "started": f"{datetime.fromisoformat(identity.started).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "commit": identity.git_commit or DASH,
        "versions": _listed(identity.versions),
        "id, in W&B too" if (Path(record.place) / "wandb").is_dir() else "id": identity.id,
        "group of runs that repeat it": identity.group,
        "folder": record.place,
    }


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or DASH


def differences(record: RunRecord) -> tuple[str, list[tuple[str, str, str]]]:
    """How the configuration differs from that of the recipe, or from the defaults.

    Returns:
        What it is compared with, in words; and key, value of the run and value there of each that differs, except
        `output.dir`.
    """
    recipe = record.identity.recipe
    if recipe in recipe_names():
        name, base = f"the recipe {recipe}", load_config(["--recipe", recipe]).config
    else:
        name, base = "the defaults", Config()
    expected = {key: show_setting(setting) for key, setting in flatten(base).items()}
    found = [(key, show_setting(setting), expected.get(key, DASH)) for key, setting in record.config.items()]
    return name, [entry for entry in found if entry[0] != "output.dir" and entry[1] != entry[2]]


def show_setting(setting: Any) -> str:
    """A value of a configuration as one would write it into a file."""
    if isinstance(setting, list | tuple):
        return f"[{', '.join(map(str, setting))}]"
    if setting is None:
        return "null"
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def raised_flags(steps: Sequence[Mapping[str, Any]]) -> list[tuple[health.Flag, list[int]]]:
    """Each red flag, in the order in which they came up, with the logged steps at which it was up.

    A flag of another version has no meaning and no remedy.
    """
    up: dict[str, list[int]] = {}
    for step in steps:
        for name in step.get("flags") or ():
            up.setdefault(str(name), []).append(step["step"])
    known = {flag.name: flag for flag in vars(health).values() if isinstance(flag, health.Flag)}
    gradients = {name: name.removesuffix("_gradient_zero") for name in up if name.endswith("_gradient_zero")}
    known |= {name: health.gradient_zero(group) for name, group in gradients.items()}
    return [(known.get(name, health.Flag(name, "", "")), at) for name, at in up.items()]


def skipped_steps(steps: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps that were skipped because something was not finite; None if the run did not count them."""
    return next((step["skipped_steps"] for step in reversed(steps) if step.get("skipped_steps") is not None), None)


def replicas(record: RunRecord) -> str:
    """What is known about the comparison of what all processes should hold alike, as a sentence."""
    if record.identity.processes == 1:
        return "One process: there are no replicas to compare."
    every = record.config.get("distributed.replica_check_every")
    if not every:
        return "The replicas of the processes were not compared."
    # A step is logged before it is compared, and a difference ends the run.
    last = (max(step["step"] for step in record.steps) - 1) // every * every if record.steps else 0
    if last <= 0:
        return f"The replicas of the processes had not been compared yet: they are after each {counted(every, 'step')}."
    return f"The replicas of the processes were alike when they were last known to be compared, after step {last:,}."


def costs(record: RunRecord) -> dict[str, str]:
    """Time and cost; a dash if unknown."""
    paces = finite_values(record.epochs, "pairs_per_s")
    return {
        "elapsed": duration(record.elapsed),
        "device-hours": number(record.device_hours, ".3g"),
        "exact grids per device-hour": number(record.exact_per_device_hour, ",.1f"),
        "training queries a second, median": number(record.pace),
        "slowest and fastest epoch, queries a second": f"{min(paces):,.0f} and {max(paces):,.0f}" if paces else DASH,
    }


def hardest_tasks(validation: Validation) -> list[tuple[str, list[QueryResult]]]:
    """The tasks of a validation with the results of their queries: first the fewest right cells, then by id."""
    tasks: dict[str, list[QueryResult]] = defaultdict(list)
    for query, result in validation.results.items():
        tasks[task_of(query)].append(result)
    return sorted(tasks.items(), key=lambda entry: (fmean(result.cell for result in entry[1]), entry[0]))


def exact_queries(validation: Validation) -> list[str]:
    """The ids of the queries that are exact, in the order of the validation."""
    return [query for query, result in validation.results.items() if result.exact]


def changes(validations: Sequence[Validation]) -> dict[str, tuple[list[str], list[str]]]:
    """What the last validation newly solves and what it lost, against the one before it and the first.

    Returns:
        By what the earlier validation is called, two lists of query ids in their order.
    """
    if len(validations) < 2:
        return {}
    first, before, last = validations[0], validations[-2], validations[-1]
    against = {"the first": first} if first is before else {"the one before it": before, "the first": first}
    changed = {}
    for name, earlier in against.items():
        then, now = exact_queries(earlier), exact_queries(last)
        solved = [query for query in now if query not in then]
        lost = [query for query in then if query not in now]
        changed[f"{name}, epoch {earlier.epoch}"] = (solved, lost)
    return changed


def planning_scores(shown: Sequence[ShownQuery]) -> list[tuple[str, float, int, int]]:
    """The answers after each planning step, and at last those that are scored; empty without queries.

    Returns:
        For each: what it is after, the mean over the queries of the share of the target's cells that are right, how
        many queries are exact, and how many there are.
    """
    if not shown:
        return []
    answers = {
        f"step {step + 1}": [(query.steps[step], query.target) for query in shown if len(query.steps) > step]
        for step in range(max(len(query.steps) for query in shown))
    }
    answers["the last step, with the solver's memory"] = [(query.prediction, query.target) for query in shown]
    scores = []
    for after, pairs in answers.items():
        shares = [right_cells(np.array(answer), np.array(target)) / np.size(target) for answer, target in pairs]
        exact = sum(answer == target for answer, target in pairs)
        scores.append((after, fmean(shares), exact, len(pairs)))
    return scores
