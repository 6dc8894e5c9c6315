"""Symmetries of ARC: the 8 of the square, the colours 1 to 9, the order of the demonstrations."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from arcdist.data.queries import Query
from arcdist.data.tasks import NUM_COLORS, Pair


@dataclass(frozen=True, slots=True, eq=False)
class Augmentation:
    """One invertible change, the same for all grids of a task."""

    dihedral: int
    """0 to 7: transposed if 4 or more, then turned counter-clockwise `dihedral % 4` times."""
    colors: UInt8[np.ndarray, "10"]
    """The colour that each colour becomes; 0 stays 0."""
    order: tuple[int, ...]
    """Position i is taken by context pair `order[i]`."""

    def apply(self, grid: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "p q"]:
        """Change one grid."""
        changed: UInt8[np.ndarray, "p q"] = self.colors[np.rot90(grid.T if self.dihedral >= 4 else grid, self.dihedral)]
        return changed

    def invert(self, grid: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "p q"]:
        """Change one grid back: `invert(apply(grid))` is `grid`."""
        turned = np.rot90(np.argsort(self.colors).astype(np.uint8)[grid], -self.dihedral)
        return turned.T if self.dihedral >= 4 else turned

    def apply_query(self, query: Query) -> Query:
        """Change a query: its context is reordered, its target changes with its input.

        Raises:
            ValueError: the augmentation was drawn for another number of context pairs.
        """
        if len(query.context) != len(self.order):
            raise ValueError(f"an augmentation drawn for {len(self.order)} pairs was given {len(query.context)}")

        def changed(grid: UInt8[np.ndarray, "h w"] | None) -> UInt8[np.ndarray, "p q"] | None:
            return None if grid is None else self.apply(grid)

        pairs = (query.context[place] for place in self.order)
        context = tuple(Pair(self.apply(pair.input), changed(pair.output)) for pair in pairs)
        return Query(query.id, query.task_id, context, self.apply(query.input), changed(query.target))


def draw_augmentation(
    rng: np.random.Generator, *, dihedral: bool, colors: bool, order: bool, num_pairs: int
) -> Augmentation:
    """Draw each symmetry that is switched on uniformly; the others are the identity.

    All are drawn, so that switching one off leaves the draws of the others as they were.
    """
    drawn_dihedral = int(rng.integers(8))
    drawn_colors = rng.permutation(NUM_COLORS - 1) + 1
    drawn_order = rng.permutation(num_pairs)
    table = np.arange(NUM_COLORS, dtype=np.uint8)
    if colors:
        table[1:] = drawn_colors
    return Augmentation(
        dihedral=drawn_dihedral if dihedral else 0,
        colors=table,
        order=tuple(drawn_order.tolist()) if order else tuple(range(num_pairs)),
    )


def draw_augmentations(
    rng: np.random.Generator, count: int, *, dihedral: bool, colors: bool, order: bool, num_pairs: int
) -> list[Augmentation]:
    """Draw so many augmentations of one query; the symmetries of the square are all different, as far as there are 8.

    The first is what `draw_augmentation` draws.
    """
    views = [
        draw_augmentation(rng, dihedral=dihedral, colors=colors, order=order, num_pairs=num_pairs) for _ in range(count)
    ]
    turns = rng.permutation(7) + 1  # Onwards from the first one's symmetry.
    if dihedral:
        first = views[0].dihedral
        views[1:8] = [
            replace(view, dihedral=int(first + turn) % 8) for view, turn in zip(views[1:8], turns, strict=False)
        ]
    return views
