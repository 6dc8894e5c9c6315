"""What answers come to: the submission, the scores with their intervals, a table, and each output's candidates."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from arcdist.data import TaskSet
from arcdist.evaluation.benchmark import Score, SolvedOutput, by_size, floors, judge, score_outputs
from arcdist.evaluation.predict import ORIGINS, Candidate, Grid, Origin
from arcdist.evaluation.vote import ATTEMPTS, Ranked, vote
from arcdist.files import replacing
from arcdist.formatting import counted, duration, percent

WEIGHTS: dict[Origin, float] = {"agent": 1.0, "steps": 0.3, "memory": 0.3, "refiner": 0.3, "demonstrations": 1.0}
"""Of the candidates' votes, by where they come from."""
NO_ANSWER: Grid = ((0,),)
"""What a submission holds where there is none: the format knows no empty attempt."""
_KEPT = 10
"""Candidates of an output in `results.json`, the best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """How a task was answered."""

    outputs: list[list[Candidate]]
    """The candidates for each of its test pairs."""
    failed: str | None
    """Why there are none; None if there are."""


def parts_of(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """What each part proposes alone; the agent in one view is what validation in training scores."""
    parts = {"agent, one view": [each for each in candidates if each.origin == "agent" and each.view == 0]}
    for origin in ORIGINS:
        if alone := [each for each in candidates if each.origin == origin]:
            parts[origin] = alone
    return parts


def write_results(
    folder: Path, tasks: TaskSet, answers: Mapping[str, Answers], protocol: Mapping[str, Any], seconds: float
) -> None:
    """Write `submission.json`, `results.json` and `solved.csv`, and print the scores.

    Args:
        folder: of the answers.
        tasks: all that were to be answered; those that were left out count as wrong.
        answers: by task.
        protocol: what the answers depend on.
        seconds: that they took.
    """
    ranked = {name: [vote(of_output, WEIGHTS) for of_output in given.outputs] for name, given in answers.items()}
    solved: list[SolvedOutput] = []
    by_part: dict[str, list[SolvedOutput]] = {}
    rows = []
    for task in tasks.tasks:
        given = answers.get(task.id)
        for index, pair in enumerate(task.tests):
            if pair.output is None:
                continue
            best = ranked[task.id][index] if given and given.outputs else []
            solved.append(judge(task.id, pair.output, [each.grid for each in best]))
            rows.append((task.id, index, task.longest_side, solved[-1]))
            if given and given.outputs:
                for part, alone in parts_of(given.outputs[index]).items():
                    grids = [each.grid for each in vote(alone, dict.fromkeys(ORIGINS, 1.0))]
                    by_part.setdefault(part, []).append(judge(task.id, pair.output, grids))
    left_out = _left_out(tasks, answers)
    absent = [SolvedOutput(task_id=row[0], at_1=False, at_2=False, oracle=False) for row in rows if row[0] in left_out]
    parts = {part: score_outputs([*of_part, *absent]) for part, of_part in by_part.items()}
    whole = score_outputs(solved)
    unknown = sum(pair.output is None for task in tasks.tasks for pair in task.tests)
    content = {
        "protocol": dict(protocol),
        **asdict(whole),
        "unknown_outputs": unknown,
        "parts": {name: asdict(score) for name, score in parts.items()},
        "sizes": {name: asdict(score) for name, score in by_size(solved, {t.id: t for t in tasks.tasks}).items()},
        "floors": {name: asdict(score) for name, score in floors(tasks.tasks).items()},
        "left_out": left_out,
        "seconds": seconds,
        "results": {
            task.id: [[_shown(each) for each in of_output[:_KEPT]] for of_output in ranked.get(task.id, [])]
            for task in tasks.tasks
        },
    }
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("task", "test", "longest_side", "solved_at_1", "solved_at_2", "among_candidates"))
    writer.writerows((name, index, side, int(s.at_1), int(s.at_2), int(s.oracle)) for name, index, side, s in rows)
    for name, text in (
        ("submission.json", json.dumps(submission(tasks, ranked))),
        ("results.json", json.dumps(content, indent=1)),
        ("solved.csv", table.getvalue()),
    ):
        with replacing(folder / name) as partial:
            partial.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")
    _print(folder, content, parts)


def submission(tasks: TaskSet, ranked: Mapping[str, Sequence[Sequence[Ranked]]]) -> dict[str, list[dict[str, Grid]]]:
    """Kaggle's format: two attempts for each test input of every task."""
    given: dict[str, list[dict[str, Grid]]] = {}
    for task in tasks.tasks:
        of_task = ranked.get(task.id) or [[]] * len(task.tests)
        given[task.id] = []
        for of_output in of_task:
            grids = [each.grid for each in of_output[:ATTEMPTS]]
            grids += [grids[0] if grids else NO_ANSWER] * (ATTEMPTS - len(grids))
            given[task.id].append({f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)})
    return given


def _left_out(tasks: TaskSet, answers: Mapping[str, Answers]) -> dict[str, str]:
    """Why a task has no answers."""
    reasons = {}
    for task in tasks.tasks:
        given = answers.get(task.id)
        if given is None:
            reasons[task.id] = f"left out by data.max_side or data.max_tasks (its longest side is {task.longest_side})"
        elif given.failed:
            reasons[task.id] = given.failed
    return reasons


def _shown(ranked: Ranked) -> dict[str, Any]:
    return {"grid": ranked.grid, "score": ranked.score, "log_prob": ranked.log_prob, "origins": ranked.origins}


def _print(folder: Path, content: Mapping[str, Any], parts: Mapping[str, Score]) -> None:
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title=f"{content['protocol']['scored']}, {content['protocol']['protocol']}")
    for name in ("", "solved at 1", "solved at 2", "among all", "pass@1", "pass@2", "95 %"):
        table.add_column(name, justify="left" if not name else "right")

    def row(name: str, score: Mapping[str, Any], **style: Any) -> None:
        low, high = score["interval_at_2"]
        table.add_row(
            name,
            *(f"{score[key]} of {score['outputs']}" for key in ("solved_at_1", "solved_at_2", "oracle")),
            *(percent(score[key]) for key in ("pass_at_1", "pass_at_2")),
            f"{percent(low)} – {percent(high)}",
            **style,
        )

    row("all votes", content, style="bold")
    for name, score in parts.items():
        row(name, asdict(score))
    table.add_section()
    for name, sizes in content["sizes"].items():
        if sizes["outputs"]:
            row(f"sides {name}", sizes)
    table.add_section()
    for name, floor in content["floors"].items():
        row(name, floor)
    if content["outputs"]:
        console.print(table)
    else:
        console.print("None of the test outputs is known, so nothing can be scored: submission.json holds the answers.")
    if content["left_out"]:
        without = counted(len(content["left_out"]), "task")
        console.print(f"{without} without an answer, counted as wrong: results.json says why.")
    files = "submission.json, results.json, solved.csv"
    console.print(f"{duration(content['seconds'])}. {folder}: {files}", soft_wrap=True)
