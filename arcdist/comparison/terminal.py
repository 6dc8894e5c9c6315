"""A comparison on the terminal: short tables, and the verdict last, where the eye is."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist.comparison.comparison import Comparison
from arcdist.comparison.sheet import Sheet

_PAGE_ONLY = ("contests_best",)


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison."""
    console.print(_legend(comparison))
    for sheet in comparison.sheets:
        # Of a single rival the verdict says all.
        if sheet.key in _PAGE_ONLY or (sheet.key == "contests_last" and len(sheet.columns) == 1):
            continue
        console.print(_table(sheet))
    console.print()
    console.print(Text(comparison.verdict[0], style="bold"))
    for sentence in comparison.verdict[1:]:
        console.print(Text(sentence))


def _legend(comparison: Comparison) -> RenderableType:
    lines = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    lines.add_column(style="bold", no_wrap=True)
    lines.add_column(overflow="fold")
    for _ in range(2):
        lines.add_column(justify="right", style="dim", no_wrap=True)
    for run in comparison.runs:
        steps = run.record.steps[-1]["step"] if run.record.steps else 0
        lines.add_row(run.letter, Text(run.name), _count(len(run.record.epochs), "epoch"), _count(steps, "step"))
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(sheet: Sheet) -> RenderableType:
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    lines.add_column(Text(sheet.title), no_wrap=True)
    for column in sheet.columns:
        lines.add_column(column, justify="right", overflow="fold")
    for line in sheet.lines:
        cells = (
            Text(text, style="bold green" if marked else "")
            for text, marked in zip(line.texts, line.marks, strict=True)
        )
        lines.add_row(Text(line.label), *cells)
    return Group("", *_parts(sheet, lines))


def _parts(sheet: Sheet, lines: Table) -> Iterator[RenderableType]:
    if sheet.lines:
        yield lines
        if sheet.note:
            yield Text(sheet.note, style="dim")
    else:
        yield Text(f"{sheet.title}: {sheet.note}")
