"""The pairs of a task in the order in which the models are given them, and what is kept from them."""

from collections.abc import Iterator

from arcdist.data import Pair
from arcdist.preview.cells import Grid
from arcdist.preview.given import Given
from arcdist.preview.layout import Panel, Strip

NOT_GIVEN = "not given to the models"


def strips_of(given: Given) -> list[Strip]:
    """Context pairs as ordered by the augmentation, the query; apart from them its target and all other pairs."""
    return [*_context(given), _query(given), _target(given), *_others(given)]


def _context(given: Given) -> Iterator[Strip]:
    order = range(len(given.context)) if given.augmentation is None else given.augmentation.order
    for number, (place, seen) in enumerate(zip(order, given.context, strict=True), start=1):
        yield Strip(
            name=f"context {number} of {len(given.context)}: {given.names[place]}",
            note="",
            before=_panels(given.query.context[place]),
            after=[] if given.augmentation is None else _panels(seen),
        )


def _query(given: Given) -> Strip:
    return Strip(
        name=f"query: {given.name}",
        note="",
        before=[_panel("input", given.query.input)],
        after=[] if given.augmentation is None else [_panel("input", given.input)],
    )


def _target(given: Given) -> Strip:
    before, after = given.query.target, given.target
    return Strip(
        name=f"target of {given.name}",
        note="not known" if before is None else NOT_GIVEN,
        before=[] if before is None else [_panel("target", before)],
        after=[] if after is None or given.augmentation is None else [_panel("target", after)],
    )


def _others(given: Given) -> Iterator[Strip]:
    for kind, pairs in (("train", given.task.demonstrations), ("test", given.task.tests)):
        for place, pair in enumerate(pairs):
            name = f"{kind}:{place}"
            if name != given.name and name not in given.names:
                yield Strip(name=name, note=NOT_GIVEN, before=_panels(pair), after=[])


def _panels(pair: Pair) -> list[Panel]:
    return [_panel(name, grid) for name, grid in zip(("input", "output"), pair.grids(), strict=False)]


def _panel(name: str, grid: Grid) -> Panel:
    return Panel(caption="{} {} × {}".format(name, *grid.shape), grid=grid)
