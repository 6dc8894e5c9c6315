"""What an evaluation leaves for its reader: the files, the scores on the terminal, and a page with pictures."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from arcdist.analysis.page import image, render
from arcdist.data import TaskSet
from arcdist.evaluation.predict import grid_tuple
from arcdist.files import replacing
from arcdist.formatting import counted, duration, hundredths, percent
from arcdist.solving.results import Answers, Output, check_submission, outputs_of, results, submission
from arcdist.tracking.grids import difference_picture, grid_picture, right_cells, verdict

PROTOCOLS = {
    "seen": "the demonstrations of these tasks were trained on",
    "transductive": "the demonstrations of these tasks were added to those that were trained on",
    "unseen": "nothing of these tasks was trained on",
    "overlapping": "some of these tasks were trained on",
}
FILES = ("submission.json", "results.json", "solved.csv", "answers.html")
_SHOWN = 200
"""Test outputs on the page."""
_NAMED = 5
"""Tasks without an answer that are named on the console."""


def write_results(
    folder: Path, tasks: TaskSet, answers: Mapping[str, Answers], protocol: Mapping[str, Any], max_side: int
) -> None:
    """Write the `FILES`, and print the scores.

    Args:
        folder: of the answers.
        tasks: all that were to be answered; those that were left out count as wrong.
        answers: by task.
        protocol: what the answers depend on.
        max_side: longest side of a task that was answered.
    """
    outputs = outputs_of(tasks, answers)
    content = results(tasks, outputs, answers, protocol, max_side)
    given = submission(tasks, outputs)
    check_submission(given, tasks.tasks)
    texts = json.dumps(given), _json(content), solved_table(outputs), page(content, outputs)
    for name, text in zip(FILES, texts, strict=True):
        with replacing(folder / name) as partial:
            partial.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")
    _print(folder, content)


def _json(content: Mapping[str, Any]) -> str:
    """`results.json` for people, too: scores that are easy to read, then a line for each task's candidates."""
    scores = json.dumps({name: value for name, value in content.items() if name != "results"}, indent=1)
    lines = (f"  {json.dumps(name)}: {json.dumps(of_task)}" for name, of_task in content["results"].items())
    return scores.removesuffix("\n}") + ',\n "results": {\n' + ",\n".join(lines) + "\n }\n}"


def solved_table(outputs: Sequence[Output]) -> str:
    """The content of `solved.csv`: a line a test output whose answer is known."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("task", "test", "longest_side", "solved_at_1", "solved_at_2", "among_candidates"))
    for output in outputs:
        if output.pair.output is not None:
            solved = output.solved([each.grid for each in output.ranked])
            marks = map(int, (solved.at_1, solved.at_2, solved.oracle))
            writer.writerow((output.task.id, output.index, output.task.longest_side, *marks))
    return table.getvalue()


def score_rows(content: Mapping[str, Any]) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
    """The lines of the table of scores, in groups."""
    yield [("all votes", content), *content["parts"].items()]
    yield [
        (f"sides {name}, of {score['outputs']:,}", score)
        for name, score in content["sizes"].items()
        if score["outputs"]
    ]
    yield list(content["floors"].items())


def summary(content: Mapping[str, Any]) -> str:
    """What was scored, and how it relates to the training, in a sentence."""
    protocol = content["protocol"]
    outputs, tasks = counted(content["outputs"], "test output"), counted(content["tasks"], "task")
    return f"{protocol['scored']}: {outputs} of {tasks}, {protocol['protocol']} ({PROTOCOLS[protocol['protocol']]})."


def notes(content: Mapping[str, Any]) -> Iterator[str]:
    """What is to be known beside the scores, a sentence each."""
    if content["unknown_outputs"]:
        unknown = counted(content["unknown_outputs"], "test output")
        what = "nothing can be scored" if not content["outputs"] else "answered without being scored"
        yield f"{unknown} not known: {what}; submission.json holds the answers."
    missed = not_held_out(content["protocol"]["solve"])
    for reason, count in Counter(content["not_held_out"].values()).items():
        yield f"{counted(count, 'task')} {missed}: {'it has' if count == 1 else 'they have'} {reason}."
    if content["without_tests"]:
        yield f"{counted(len(content['without_tests']), 'task')} without test pairs: nothing to answer."


def not_held_out(solve: Mapping[str, Any]) -> str:
    """What a task misses of which nothing can be held out, in words, by the section `solve`."""
    ways = [("adapt_steps", "could not be adapted"), ("draws", "could have no draw chosen")]
    return " and ".join(words for key, words in ways if solve.get(key))


def without_answer(content: Mapping[str, Any]) -> str:
    """How many tasks have no answer, or not all, in words."""
    some = any(any(content["results"][name]) for name in content["left_out"])
    wrong = ", counted as wrong" if content["outputs"] else ""
    return (
        f"{counted(len(content['left_out']), 'task')} without an answer{' to each test input' if some else ''}{wrong}"
    )


def _print(folder: Path, content: Mapping[str, Any]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if content["outputs"]:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("solved", no_wrap=True)
        for name in ("at 1", "at 2", "oracle", "pass@1", "pass@2", "95 % of pass@2"):
            table.add_column(name, justify="right", no_wrap=True)
        for group in score_rows(content):
            for name, score in group:
                low, high = score["interval_at_2"]
                table.add_row(
                    name,
                    *(f"{score[key]:,}" for key in ("solved_at_1", "solved_at_2", "oracle")),
                    *(percent(score[key]) for key in ("pass_at_1", "pass_at_2")),
                    f"{hundredths(low)} – {percent(high)}",
                    style="bold" if score is content else "",
                )
            table.add_section()
        console.print(summary(content))
        console.print(table)
        console.print()
    for note in notes(content):
        console.print(note)
    if content["left_out"]:
        console.print(f"{without_answer(content)}:")
    for name, why in list(content["left_out"].items())[:_NAMED]:
        console.print(f"  {name}: {why}", soft_wrap=True)
    if len(content["left_out"]) > _NAMED:
        console.print(f"  and {len(content['left_out']) - _NAMED:,} more: results.json says why.")
    console.print(f"{duration(content['seconds'])} of computing. In {folder}:", soft_wrap=True)
    console.print(f"{', '.join(FILES)}.", soft_wrap=True)


def page(content: Mapping[str, Any], outputs: Sequence[Output]) -> str:
    """The page as HTML that needs no other file: protocol and scores, then the test outputs with their pictures.

    Solved ones are first, then those with most cells right.
    """
    ordered = sorted(outputs, key=_closeness)
    protocol = content["protocol"]
    facts = {name: value for name, value in protocol.items() if not isinstance(value, dict)}
    facts |= {f"solve.{name}": value for name, value in protocol["solve"].items()} | protocol["changed"]
    return render(
        "answers.html",
        {
            "title": f"Answers to {protocol['scored']}",
            "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "summary": summary(content) if content["outputs"] else f"{protocol['scored']}: nothing can be scored.",
            "content": content,
            "facts": facts,
            "groups": [group for group in score_rows(content) if group] if content["outputs"] else [],
            "notes": list(notes(content)),
            "without_answer": without_answer(content),
            "total": len(outputs),
            "shown": [_shown(output) for output in ordered[:_SHOWN]],
            "percent": percent,
            "hundredths": hundredths,
            "duration": duration,
        },
    )


def _closeness(output: Output) -> tuple[bool, bool, float]:
    """How near its attempts are to the target, for sorting: the nearest first."""
    target = output.pair.output
    if target is None:
        return True, True, 1.0
    solved = output.solved(output.attempts)
    shares = (right_cells(np.array(grid), target) / target.size for grid in output.attempts)
    return not solved.at_1, not solved.at_2, -max(shares, default=0.0)


def _shown(output: Output) -> tuple[str, str, str, list[tuple[str, Markup]]]:
    """Name, verdict and remark of a test output, and its pictures under their captions."""
    target = output.pair.output
    grids = [("input", output.pair.input)]
    grids += [(f"attempt {number}", np.array(grid)) for number, grid in enumerate(output.attempts, start=1)]
    longest = max(max(grid.shape) for _, grid in (*grids, *([("", target)] if target is not None else [])))
    name = f"{output.task.id}, test {output.index}"
    panels = [
        (
            f"{caption}, {grid.shape[0]} × {grid.shape[1]}"
            + (f": {verdict(grid, target)}" if target is not None and caption != "input" else ""),
            image(grid_picture(grid, None if caption == "input" else target), f"{caption} of {name}", longest),
        )
        for caption, grid in grids
    ]
    if target is None:
        return name, "not known", "", panels
    panels.append(
        (f"target, {target.shape[0]} × {target.shape[1]}", image(grid_picture(target), f"target of {name}", longest))
    )
    solved = output.solved(output.attempts)
    if output.attempts and not solved.at_2:
        difference = difference_picture(np.array(output.attempts[0]), target)
        panels.append(("difference to attempt 1", image(difference, f"difference of {name}", longest)))
    right = [number for number, each in enumerate(output.ranked, start=1) if each.grid == grid_tuple(target)]
    remark = f"the right grid had rank {right[0]} of {len(output.ranked)}" if right and not solved.at_2 else ""
    said = "solved" if solved.at_1 else "solved at the second attempt" if solved.at_2 else "not solved"
    return name, said if output.attempts else "no answer", remark, panels
