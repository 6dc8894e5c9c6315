"""Tasks as the models are given them, on the terminal and as pictures; without a task, the data as a whole."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from arcdist.analysis.data_overview import draw_data, save_picture, show_data, survey, table
from arcdist.analysis.preview_arguments import PreviewArguments
from arcdist.analysis.preview_query import CollatedQuery, collate_query, exclusion, find_task, load_tokenizer
from arcdist.config import AugmentConfig, Config
from arcdist.data import MAX_SIDE, Augmentation, Grid, read_task_sets
from arcdist.errors import ConfigError, DataError
from arcdist.formatting import counted
from arcdist.tracking.grids import draw_grids, grid_text, has_colors

NOT_GIVEN = "not given to the models"
KEPT = "yellow"
"""Style of what the models are not given."""
ARROW = "→"


def preview(config: Config, arguments: PreviewArguments) -> None:
    """Show tasks, or without a task the data as a whole.

    Raises:
        ArcdistError: of the kind that says whose mistake it is; a task that does not exist is reported before any is
            shown, a refusal of the leak guard after all that was counted.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if arguments.task_ids:
        _preview_tasks(console, config, arguments)
        return
    overview = survey(config.data)
    show_data(console, overview, config.data)
    if arguments.picture is not None:
        draw_data(overview, arguments.picture)
        _report_picture(console, arguments.picture)
    if isinstance(overview.leaks, DataError):
        raise overview.leaks


def _preview_tasks(console: Console, config: Config, arguments: PreviewArguments) -> None:
    tokenizer = load_tokenizer(config.qwen)
    sets = read_task_sets(config.data)
    queries = []
    for task_id in arguments.task_ids:
        task, origin = find_task(sets, task_id, arguments.kind)
        if task.longest_side > MAX_SIDE:
            raise ConfigError(
                f"Task {task_id} of {origin} has a side of {task.longest_side}, and models are given sides up to "
                f"{MAX_SIDE}: a run always leaves it out, and it cannot be shown as one would see it."
            )
        collated = collate_query(config, sets, task, kind=arguments.kind, index=arguments.index, epoch=arguments.epoch,
                     tokenizer=tokenizer)  # fmt: skip
        queries.append(
            (collated, heading(collated, config, origin, exclusion(sets, config.data, task, arguments.kind)))
        )
    for collated, lines in queries:
        show_task(console, collated, config, lines)
        if (path := arguments.picture_of(collated.task.id)) is not None:
            draw_task(collated, path, [line.plain for line in lines])
            _report_picture(console, path)


def _report_picture(console: Console, path: Path) -> None:
    console.print(f"Drawn to {path}.", soft_wrap=True)


SYMMETRIES = (
    "as it is",
    "turned left by 90°",
    "turned by 180°",
    "turned right by 90°",
    "mirrored at the diagonal from the upper left",
    "mirrored top to bottom",
    "mirrored at the diagonal from the upper right",
    "mirrored left to right",
)
"""What `Augmentation.dihedral` 0 to 7 does to a grid."""


def describe(augmentation: Augmentation, names: Sequence[str], augment: AugmentConfig) -> dict[str, str]:
    """What was drawn, by part: the symmetry, the colours, the order of the context pairs.

    Args:
        augmentation: as drawn.
        names: of the context pairs, in the data's order.
        augment: what may be drawn at all.
    """
    moved = [f"{old}→{new}" for old, new in enumerate(augmentation.colors.tolist()) if old != new]
    parts = {
        "symmetry": ("dihedral", f"{augmentation.dihedral} of 0-7: {SYMMETRIES[augmentation.dihedral]}"),
        "colours": ("colors", " ".join(moved) or "as they are"),
        "order": ("order", " ".join(names[place] for place in augmentation.order)),
    }
    return {
        part: text if getattr(augment, key) else f"not drawn: data.augment.{key} is false"
        for part, (key, text) in parts.items()
    }


def heading(collated: CollatedQuery, config: Config, origin: str, excluded: str | None) -> list[Text]:
    """Which query it is, and how the data is changed for it, line by line.

    Args:
        collated: the query.
        config: of the run.
        origin: where the task was read from.
        excluded: why a run would not ask this query, see `exclusion`.
    """
    task, augmentation = collated.task, collated.augmentation
    asked = "as validation sees it" if augmentation is None else f"as training sees it in epoch {collated.epoch}"
    pairs = f"{counted(len(task.demonstrations), 'demonstration')}, {counted(len(task.tests), 'test pair')}"
    lines = [Text.assemble((collated.query.id, "bold"), f", {asked}"), Text(f"{origin}: {pairs}")]
    if excluded is not None:
        lines.append(Text(excluded, style=KEPT))
    if collated.undrawn:
        others = len(collated.shown) + collated.undrawn
        when = "the same in every validation" if augmentation is None else "drawn anew each epoch"
        lines.append(Text(f"context: {len(collated.shown)} of {others} pairs, {when}: data.max_context_pairs"))
    if augmentation is None:
        return [*lines, Text("Nothing is augmented in validation; --epoch E shows what training draws.")]
    drawn = describe(augmentation, collated.context_names, config.data.augment)
    return [*lines, *(Text(f"{part}: {text}") for part, text in drawn.items())]


Panel: TypeAlias = tuple[str, Grid]
"""A caption and its grid."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairRow:
    """The grids of one pair: as in the data and, if it is augmented, as augmented."""

    name: str
    """Which pair, and its part in the query."""
    note: str = ""
    """What the models are not given."""
    before: Sequence[Panel]
    after: Sequence[Panel] = ()


def pair_rows(collated: CollatedQuery) -> list[PairRow]:
    """The context pairs in the order of the augmentation, the query, its target, and the pairs that are not given."""
    query, augmented = collated.query, collated.given
    drawn = collated.augmentation is not None
    order = range(len(query.context)) if collated.augmentation is None else collated.augmentation.order
    names = collated.context_names
    # The demonstrations that were not drawn may be hundreds.
    kinds = {"train": () if collated.undrawn else collated.task.demonstrations, "test": collated.task.tests}
    others = {f"{kind}:{place}": pair for kind, pairs in kinds.items() for place, pair in enumerate(pairs)}
    return [
        *(
            PairRow(
                name=f"context {number} of {len(names)}: {names[place]}",
                before=_panels(input=query.context[place].input, output=query.context[place].output),
                after=_panels(input=changed.input, output=changed.output) if drawn else (),
            )
            for number, (place, changed) in enumerate(zip(order, augmented.context, strict=True), start=1)
        ),
        PairRow(
            name=f"query: {collated.name}",
            before=_panels(input=query.input),
            after=_panels(input=augmented.input) if drawn else (),
        ),
        PairRow(
            name=f"target of {collated.name}",
            note="not known" if query.target is None else NOT_GIVEN,
            before=_panels(target=query.target),
            after=_panels(target=augmented.target) if drawn else (),
        ),
        *(
            PairRow(name=name, note=NOT_GIVEN, before=_panels(input=pair.input, output=pair.output))
            for name, pair in others.items()
            if name not in (collated.name, *names)
        ),
    ]


def _panels(**grids: Grid | None) -> list[Panel]:
    return [("{} {} × {}".format(name, *grid.shape), grid) for name, grid in grids.items() if grid is not None]


_GAP = 3
_LISTED_QUERIES = 20
_Lines: TypeAlias = list[list[Text]]
"""Grids with their captions, and marks between them, line by line."""


def render_pair_rows(rows: Sequence[PairRow], width: int, *, colored: bool) -> list[RenderableType]:
    """Pair rows to print within `width` columns: with wide cells if all pairs then fit in a line each, else narrow.

    A pair that does not fit in a line has what is augmented below what is in the data, or all its grids in a column.
    """
    wide = all(_width(_layouts(row, wide=True, colored=colored)[0]) <= width for row in rows)
    rendered: list[RenderableType] = []
    for row in rows:
        layouts = _layouts(row, wide=wide, colored=colored)
        lines = next((lines for lines in layouts if _width(lines) <= width), layouts[-1])
        title = Text.assemble((row.name, "bold"), "  " if row.note else "", (row.note, KEPT))
        rendered.append(Group(title, *map(_beside, lines)))
    return rendered


def _layouts(row: PairRow, *, wide: bool, colored: bool) -> list[_Lines]:
    """From the widest to the narrowest."""
    before, after = (
        [Text.assemble((caption, "dim"), "\n", grid_text(grid, wide=wide, colored=colored)) for caption, grid in panels]
        for panels in (row.before, row.after)
    )
    if not after:
        return [[before], [[panel] for panel in before]]
    blank, arrow = Text("\n "), Text(f"\n{ARROW}")
    return [
        [[*before, arrow, *after]],
        [[blank, *before], [arrow, *after]],
        [[mark, panel] for mark, panels in ((blank, before), (arrow, after)) for panel in panels],
    ]


def _width(lines: _Lines) -> int:
    return max(sum(max(map(cell_len, part.plain.split("\n"))) + _GAP for part in line) - _GAP for line in lines)


def _beside(parts: Sequence[Text]) -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0))
    for _ in parts:
        table.add_column(no_wrap=True)
    table.add_row(*parts)
    return table


def show_task(console: Console, collated: CollatedQuery, config: Config, lines: Sequence[Text]) -> None:
    """Print what the models are given of a query, and what is kept from them.

    Args:
        console: where to; grids are laid out for its width and its colours.
        collated: the query.
        config: of the run.
        lines: of its heading.
    """
    for part in (*lines, *_grids(collated, console), *_prompt(collated), *_numbers(collated, config)):
        console.print(part)
    console.print()


def _grids(collated: CollatedQuery, console: Console) -> Iterator[RenderableType]:
    if collated.augmentation is not None:
        yield f"Before {ARROW} grids are as in the data, after it as augmented."
    for row in render_pair_rows(pair_rows(collated), console.width, colored=has_colors(console)):
        yield ""
        yield row


def _prompt(collated: CollatedQuery) -> Iterator[RenderableType]:
    yield ""
    yield Text.assemble(("prompt", "bold"), f": {len(collated.ids):,} tokens of {collated.tokenizer}")
    yield "Decoded from these, left to right, then below; the end of a line is a token."
    yield ""
    # Cut before each mark, so that grids can be beside each other.
    blocks = filter(None, re.split(r"(?=[IO])", collated.text))
    yield Columns([Text(block) for block in blocks], padding=(0, 3, 0, 0))


def _numbers(collated: CollatedQuery, config: Config) -> Iterator[RenderableType]:
    features = [(name, f"{value:.4f}") for name, value in collated.features.items()]
    yield table("transformation feature", ["mean of pairs"], features)
    yield ""
    vector = "zeros: the task is not trained on" if collated.task_row < 0 else f"row {collated.task_row}"
    counts = [
        Text(f"{name} {count:,}", style="bold" if name == collated.name else "")
        for name, count in collated.token_counts.items()
        if len(collated.token_counts) <= _LISTED_QUERIES or name == collated.name
    ]
    if unlisted := len(collated.token_counts) - len(counts):
        least, most = min(collated.token_counts.values()), max(collated.token_counts.values())
        counts.append(Text(f"{unlisted} other queries of the task, all {least:,} to {most:,}"))
    rest = Table.grid(padding=(0, 2, 0, 0))
    rest.add_row("working area", "{} × {}".format(*collated.working_area))
    rest.add_row("task vector", vector if config.agent.task_vectors else "none: agent.task_vectors is false")
    rest.add_row("tokens", Text(", ").join(counts))
    yield rest


_CELL_INCHES = 0.11
_LEAST_INCHES = 1.9
_LETTERS_PER_INCH = 12


def draw_task(collated: CollatedQuery, path: Path, lines: Sequence[str]) -> None:
    """Draw a row for each pair: as in the data and, on the right, as augmented; the target in a row of its own.

    Args:
        collated: the query.
        path: of the PNG.
        lines: of its heading.

    Raises:
        ConfigError: the file cannot be written.
    """
    rows = [row for row in pair_rows(collated) if row.before]
    side = max(_LEAST_INCHES, _CELL_INCHES * collated.task.longest_side)
    columns = 2 if collated.augmentation is None else 4
    width = columns * (side + 0.3)
    title = [part for line in lines for part in textwrap.wrap(line, int(width * _LETTERS_PER_INCH))]
    height = len(rows) * (side + 0.7) + 0.2 * len(title)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.suptitle("\n".join(title), x=0.02, ha="left", fontsize="medium")
    places: list[Axes] = []
    grids: list[Grid] = []
    titles: list[str] = []
    for row, axes in zip(rows, figure.subplots(len(rows), columns, squeeze=False), strict=True):
        for place in axes:
            place.set_axis_off()
        above = {0: "\n".join(filter(None, (row.name, row.note))), 2: "augmented"}
        # What is augmented begins in the third column, also if a pair has one grid.
        for column, (caption, grid) in (*enumerate(row.before), *enumerate(row.after, start=2)):
            places.append(axes[column])
            grids.append(grid)
            titles.append(f"{above.get(column, '')}\n{caption}")
    # In one call, so that cells have one size in all rows.
    draw_grids(places, grids, titles)
    save_picture(figure, path)
