"""A query on a terminal: its pairs, the text that Qwen reads, the numbers beside it."""

import re
from collections.abc import Iterator, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist.config import Config
from arcdist.preview.cells import has_colors
from arcdist.preview.given import Given
from arcdist.preview.layout import ARROW, KEPT, draw_strips
from arcdist.preview.strips import strips_of
from arcdist.preview.words import describe
from arcdist.tracking.wording import counted


def heading(given: Given, config: Config, *, epoch: int, origin: str, exclusion: str | None) -> list[Text]:
    """Which query it is, and how the data is changed for it, line by line.

    Args:
        given: the query.
        config: of the run.
        epoch: whose augmentation a train query has.
        origin: where the task was read from.
        exclusion: why a run would not ask this query; none where it would.
    """
    task, augmentation = given.task, given.augmentation
    seen = "as validation sees it" if augmentation is None else f"as training sees it in epoch {epoch}"
    pairs = f"{counted(len(task.demonstrations), 'demonstration')}, {counted(len(task.tests), 'test pair')}"
    lines = [Text.assemble((given.query.id, "bold"), f", {seen}"), Text(f"{origin}: {pairs}")]
    if exclusion is not None:
        lines.append(Text(exclusion, style=KEPT))
    if augmentation is None:
        return [*lines, Text("Nothing is augmented in validation; --epoch E shows what training draws.")]
    drawn = describe(augmentation, given.names, config.data.augment)
    return [*lines, *(Text(f"{part}: {text}") for part, text in drawn.items())]


def show_task(console: Console, given: Given, config: Config, lines: Sequence[Text]) -> None:
    """Print what the models are given of a query, and what is kept from them.

    Args:
        console: where to; grids are laid out for its width and its colours.
        given: the query.
        config: of the run.
        lines: of its heading.
    """
    for part in (*lines, *_grids(given, console), *_prompt(given), *_numbers(given, config)):
        console.print(part)
    console.print()


def _grids(given: Given, console: Console) -> Iterator[RenderableType]:
    if given.augmentation is not None:
        yield f"Before {ARROW} grids are as in the data, after it as augmented."
    for drawn in draw_strips(strips_of(given), console.width, colored=has_colors(console)):
        yield ""
        yield drawn


def _prompt(given: Given) -> Iterator[RenderableType]:
    yield ""
    yield Text.assemble(("prompt", "bold"), f": {len(given.ids):,} tokens of {given.tokenizer}")
    yield "Decoded from these, left to right, then below; the end of a line is a token."
    yield ""
    yield Columns([Text(block) for block in _blocks(given.text)], padding=(0, 3, 0, 0))


def _blocks(text: str) -> list[str]:
    """The text cut before each mark, so that grids can stand beside each other."""
    return [block for block in re.split(r"(?=[IO])", text) if block]


def _numbers(given: Given, config: Config) -> Iterator[RenderableType]:
    features = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    features.add_column("transformation feature", no_wrap=True)
    features.add_column("mean of pairs", justify="right", no_wrap=True)
    for name, value in given.features.items():
        features.add_row(name, f"{value:.4f}")
    yield features
    yield ""
    rest = Table.grid(padding=(0, 2, 0, 0))
    rest.add_row("working area", "{} × {}".format(*given.working_area))
    rest.add_row("task vector", _task_vector(given, config))
    counts = (
        Text(f"{name} {count:,}", style="bold" if name == given.name else "")
        for name, count in given.token_counts.items()
    )
    rest.add_row("tokens", Text(", ").join(counts))
    yield rest


def _task_vector(given: Given, config: Config) -> str:
    if not config.agent.task_vectors:
        return "none: agent.task_vectors is false"
    return "zeros: the task is not trained on" if given.task_row < 0 else f"row {given.task_row}"
