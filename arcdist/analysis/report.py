"""A run folder as a page: everything that it shows, put together and written."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from arcdist.analysis.page import picture, render
from arcdist.analysis.record import RunRecord, read_run_folder
from arcdist.config import Config, load_config, recipe_names
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, DataError
from arcdist.files import replacing
from arcdist.formatting import DASH, counted, duration, number, percent
from arcdist.tracking import plots
from arcdist.tracking.grids import DIFFERENCE, query_figure, right_cells, verdict_of
from arcdist.tracking.metrics import QueryResult, Rows, ShownQuery, Validation, task_of
from arcdist.training import health

_RECORD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ([A-Z]+) ?(.*)")
_LONGEST = 300
_ENDED = ("Interrupted", "Asked to make room", "Ended by Ctrl-C")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """A line of the log, with what followed it as lines of its own."""

    time: str
    level: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Complaint:
    """Warnings or errors that differ in their numbers only."""

    level: str
    text: str
    """The first of them, cut off where it is long."""
    count: int
    last: str
    """When the last one came."""


def read_log(path: Path) -> list[LogEntry]:
    """The records of a `training.log`; empty where there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see who may read there.") from error
    records: list[list[str]] = []
    for line in lines:
        if match := _RECORD.fullmatch(line):
            records.append(list(match.groups()))
        elif records and line.strip() and records[-1][1] != "INFO":
            # Of a traceback the last line says what happened.
            records[-1][3:] = [line.strip()]
    return [LogEntry(time=time, level=level, text=" … ".join([text, *more])) for time, level, text, *more in records]


def complaints(log: list[LogEntry]) -> list[Complaint]:
    """Warnings and errors, those that differ in numbers only counted together, in the order of their first ones."""
    kinds: dict[tuple[str, str], list[LogEntry]] = {}
    for entry in log:
        if entry.level not in ("INFO", "DEBUG"):
            kinds.setdefault((entry.level, re.sub(r"[\d.,]*\d", "0", entry.text)), []).append(entry)
    return [
        Complaint(level=level, text=_short(entries[0].text), count=len(entries), last=entries[-1].time)
        for (level, _), entries in kinds.items()
    ]


def resumptions(log: list[LogEntry]) -> int:
    """How often the run was resumed."""
    return sum(entry.text.startswith("Resumed from ") for entry in log)


def ending(log: list[LogEntry]) -> str | None:
    """What the log says about a run's end before its last epoch; none where it says nothing."""
    last = log[-1] if log else None
    if last is None or (last.level not in ("ERROR", "CRITICAL") and not last.text.startswith(_ENDED)):
        return None
    return _short(last.text)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A key that the run has otherwise than its recipe."""

    key: str
    run: str
    recipe: str


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """What the run was, a name and a value each."""
    identity, config = record.identity, record.config
    scored = len(record.validations[-1].results) if record.validations else None
    return [
        ("recipe", identity.recipe or "none: a configuration of its own"),
        ("data", f"{identity.source} ({_value(config, 'data.split')})"),
        ("checksums of the tasks", _listed({role: digest[:12] for role, digest in identity.data.items()})),
        ("validation queries", DASH if scored is None else f"{scored:,}"),
        ("Qwen", f"{_value(config, 'qwen.model')}, LoRA rank {_value(config, 'qwen.lora_r')}"),
        (
            "agent",
            f"{_value(config, 'agent.kind')}, width {_value(config, 'agent.hidden_dim')}, "
            f"{_value(config, 'agent.max_steps')} planning steps",
        ),
        ("batch size", _value(config, "train.batch_size")),
        ("seed", _value(config, "train.seed")),
        ("device", identity.device),
        ("processes", str(identity.processes)),
        ("DeepSpeed", "no" if identity.zero_stage is None else f"ZeRO-{identity.zero_stage}"),
        ("precision", _value(config, "train.precision")),
        ("started", _time(identity.started)),
        ("commit", identity.git_commit or DASH),
        ("versions", _listed(identity.versions)),
        ("id, in W&B too" if (Path(record.place) / "wandb").is_dir() else "id", identity.id),
        ("group of runs that repeat it", identity.group),
        ("folder", record.place),
    ]


def differences(record: RunRecord) -> tuple[str, list[Difference]]:
    """What the configuration is compared with, in words, and the keys that differ; the run's folder is left out."""
    recipe = record.identity.recipe
    if recipe in recipe_names():
        against, base = f"the recipe {recipe}", load_config(["--recipe", recipe]).config
    else:
        against, base = "the defaults", Config()
    expected = {key: shown(setting) for key, setting in flatten(base).items()}
    found = [
        Difference(key=key, run=shown(setting), recipe=expected.get(key, DASH))
        for key, setting in record.config.items()
        if key != "output.dir" and shown(setting) != expected.get(key)
    ]
    return against, found


def shown(setting: Any) -> str:
    """A value of a configuration as one would write it into a file."""
    if isinstance(setting, list | tuple):
        return f"[{', '.join(map(str, setting))}]"
    if setting is None:
        return "null"
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def _value(config: Mapping[str, Any], key: str) -> str:
    """A dash where the run knew no such key."""
    return shown(config[key]) if key in config else DASH


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or DASH


def _time(started: str) -> str:
    try:
        return f"{datetime.fromisoformat(started).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return started


_GRADIENT = "_gradient_zero"
_PATIENCE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RaisedFlag:
    """A red flag that was up at some time."""

    name: str
    first: int
    """The first logged step at which it was up."""
    last: int
    steps: int
    """Logged steps at which it was up."""
    is_up: bool
    """Whether it was up at the last logged step."""
    meaning: str
    mend: str


def raised_flags(steps: Sequence[Mapping[str, Any]]) -> list[RaisedFlag]:
    """The flags of the logged steps, in the order in which they came up."""
    up: dict[str, list[int]] = {}
    for step in steps:
        for name in step.get("flags") or ():
            up.setdefault(str(name), []).append(step["step"])
    return [
        RaisedFlag(
            name=name,
            first=at[0],
            last=at[-1],
            steps=len(at),
            is_up=at[-1] == steps[-1]["step"],
            **_explained(name),
        )
        for name, at in up.items()
    ]


def skipped_steps(steps: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps that were skipped because something was not finite; none where the run did not count them."""
    known = [step["skipped_steps"] for step in steps if step.get("skipped_steps") is not None]
    return known[-1] if known else None


def replicas(record: RunRecord) -> str:
    """What is known of the comparison of what all processes hold alike, as a sentence."""
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


def _explained(name: str) -> dict[str, str]:
    flags = {flag.name: flag for flag in vars(health).values() if isinstance(flag, health.Flag)}
    flag = flags.get(name)
    if flag is None and name.endswith(_GRADIENT):
        flag = health.gradient_zero(name.removesuffix(_GRADIENT), _PATIENCE)
    return {"meaning": flag.sentence, "mend": flag.mend} if flag else {"meaning": "", "mend": ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """How a task's queries were answered in the last validation."""

    task: str
    queries: int
    exact: int
    cell: float
    """Mean share of right cells."""
    confidence: float
    """Mean confidence."""
    ever_exact: bool
    """Whether one of its queries was exact in any validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a validation solves and an earlier one did not, and the other way round: query ids in their order."""

    solved: tuple[str, ...]
    lost: tuple[str, ...]


def task_results(validations: Sequence[Validation]) -> list[TaskResult]:
    """The tasks of the last of at least one validation, the hardest first: the fewest right cells, then by id."""
    tasks: Mapping[str, list[QueryResult]] = defaultdict(list)
    for query, result in validations[-1].results.items():
        tasks[task_of(query)].append(result)
    ever = {task_of(query) for validation in validations for query in exact_queries(validation)}
    found = [
        TaskResult(
            task=task,
            queries=len(results),
            exact=sum(result.exact for result in results),
            cell=sum(result.cell for result in results) / len(results),
            confidence=sum(result.confidence for result in results) / len(results),
            ever_exact=task in ever,
        )
        for task, results in tasks.items()
    ]
    return sorted(found, key=lambda result: (result.cell, result.task))


def change(before: Validation, after: Validation) -> Change:
    """What `after` solves and `before` did not, and what it lost."""
    solved, lost = exact_queries(after), exact_queries(before)
    return Change(
        solved=tuple(query for query in solved if query not in lost),
        lost=tuple(query for query in lost if query not in solved),
    )


def once_solved(validations: Sequence[Validation]) -> tuple[str, ...]:
    """Queries that some validation solves and the last one does not."""
    last = exact_queries(validations[-1])
    ever = {query for validation in validations for query in exact_queries(validation)}
    return tuple(sorted(ever - last.keys()))


def exact_queries(validation: Validation) -> Mapping[str, QueryResult]:
    """The queries that are exact."""
    return {query: result for query, result in validation.results.items() if result.exact}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepScore:
    """The answers at one point of planning."""

    after: str
    cell: float
    """Mean over the queries of the share of the target's cells that are right."""
    exact: int
    queries: int


def planning_scores(shown: Sequence[ShownQuery]) -> list[StepScore]:
    """The answers after each planning step, and at last those that are scored; empty without queries."""
    if not shown:
        return []
    steps = max(len(query.steps) for query in shown)
    answers = [
        (f"step {step + 1}", [(query.steps[step], query.target) for query in shown if len(query.steps) > step])
        for step in range(steps)
    ]
    scored = ("the last step, with the solver's memory", [(query.prediction, query.target) for query in shown])
    return [_score(after, pairs) for after, pairs in (*answers, scored)]


def _score(after: str, pairs: Sequence[tuple[Rows, Rows]]) -> StepScore:
    shares = [right_cells(np.array(answer), np.array(target)) / np.size(target) for answer, target in pairs]
    return StepScore(
        after=after,
        cell=sum(shares) / len(shares),
        exact=sum(answer == target for answer, target in pairs),
        queries=len(pairs),
    )


REPORT = "report.html"

_PANELS = (
    (plots.draw_loss, "Training loss by step"),
    (plots.draw_accuracy, "Right cells, sizes and grids of each validation"),
    (plots.draw_exact, "Exact grids in training and validation by epoch"),
    (plots.draw_terms, "The seven terms of the EFE loss by step"),
    (plots.draw_reward, "Mean reward of the refiner by step"),
    (plots.draw_gradient, "Qwen's gradient norm by step"),
    (plots.draw_pace, "Training queries a second by step"),
    (plots.draw_learning_rates, "Learning rates by step"),
)
_MOST_PICTURES = 32
_MOST_HARD = 12


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run folder, `report.html` in there without an `output`, and return its path.

    Raises:
        ConfigError: it is no run folder, or the page cannot be written.
        DataError: the run has no logged step yet, or a file of it is broken.
    """
    path = folder / REPORT if output is None else output
    page = report_page(read_run_folder(folder))
    try:
        with replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be written ({reason}): choose another with --output FILE.") from error
    return path


def report_page(record: RunRecord) -> str:
    """The page of a run as HTML that needs no other file."""
    folder, now = Path(record.place), datetime.now(UTC)
    log = read_log(folder / "training.log")
    last = record.validations[-1] if record.validations else None
    tasks = task_results(record.validations) if last else []
    curves = plots.Curves(epochs=record.epochs, best=record.best, steps=record.steps)
    against, differing = differences(record)
    return render(
        "report.html",
        {
            "title": f"{record.identity.name}: report of a run",
            "name": record.identity.name,
            "summary": summary(record),
            "standing": standing(record, log, now),
            "made": f"{now:%Y-%m-%d %H:%M} UTC",
            "facts": facts(record),
            "against": against,
            "differences": differing,
            "config": (folder / "config.yaml").read_text(encoding="utf-8"),
            "flags": raised_flags(record.steps),
            "logged": len(record.steps),
            "skipped": skipped_steps(record.steps),
            "replicas": replicas(record),
            "complaints": complaints(log),
            "has_log": bool(log),
            "panels": [picture(plots.panel_figure(panel, curves), alt) for panel, alt in _PANELS],
            "last": last,
            "queries": _pictures(last) if last else [],
            "difference": DIFFERENCE,
            "planning": planning_scores(last.shown) if last else [],
            "tasks": tasks,
            "hardest": tasks[:_MOST_HARD],
            "never": sum(not task.ever_exact for task in tasks),
            "changes": _changes(record.validations),
            "once": once_solved(record.validations) if last else (),
            "costs": costs(record),
            "epochs": record.epochs,
            "best": record.best.get("epoch"),
            **{function.__name__: function for function in (duration, number, percent)},
        },
    )


def _pictures(validation: Validation) -> list[tuple[str, str, Markup]]:
    """Id, verdict and picture of the shown queries."""
    return [
        (query.id, verdict_of(query), picture(query_figure(query), f"Grids of {query.id}: {verdict_of(query)}"))
        for query in validation.shown[:_MOST_PICTURES]
    ]


def _changes(validations: Sequence[Validation]) -> list[tuple[str, Change]]:
    """How the last validation differs from the one before it and from the first, and what each is called."""
    if len(validations) < 2:
        return []
    against = {"the one before it": validations[-2], "the first": validations[0]}
    if len(validations) == 2:
        against.pop("the one before it")
    return [(f"{name}, epoch {before.epoch}", change(before, validations[-1])) for name, before in against.items()]
