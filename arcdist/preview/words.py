"""Augmentations in words."""

from arcdist.config import AugmentConfig
from arcdist.data import Augmentation

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


def describe(augmentation: Augmentation, names: tuple[str, ...], augment: AugmentConfig) -> dict[str, str]:
    """What was drawn, by part: the symmetry, the colours, the order of the context pairs.

    Args:
        augmentation: as drawn.
        names: of the context pairs, in the data's order.
        augment: what may be drawn at all.
    """
    moved = [f"{old}→{new}" for old, new in enumerate(augmentation.colors.tolist()) if old != new]
    order = " ".join(names[place] for place in augmentation.order)
    parts = {
        "symmetry": (augment.dihedral, f"{augmentation.dihedral} of 0-7: {SYMMETRIES[augmentation.dihedral]}"),
        "colours": (augment.colors, " ".join(moved) or "as they are"),
        "order": (augment.order, order),
    }
    keys = {"symmetry": "dihedral", "colours": "colors", "order": "order"}
    return {
        part: text if drawn else f"not drawn: data.augment.{keys[part]} is false"
        for part, (drawn, text) in parts.items()
    }
