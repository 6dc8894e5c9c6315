import numpy as np
import pytest

from arcdist.config import AugmentConfig
from arcdist.data import Augmentation
from arcdist.preview.words import SYMMETRIES, describe

GRID = np.arange(6, dtype=np.uint8).reshape(2, 3)
SAME = np.arange(10, dtype=np.uint8)


@pytest.mark.parametrize(
    ("words", "done"),
    [
        ("as it is", GRID),
        ("turned left by 90°", np.rot90(GRID)),
        ("turned by 180°", np.rot90(GRID, 2)),
        ("turned right by 90°", np.rot90(GRID, -1)),
        ("mirrored at the diagonal from the upper left", GRID.T),
        ("mirrored top to bottom", np.flipud(GRID)),
        ("mirrored at the diagonal from the upper right", np.rot90(GRID, 2).T),
        ("mirrored left to right", np.fliplr(GRID)),
    ],
)
def test_the_symmetry_is_the_one_that_the_words_say(words, done):
    augmentation = Augmentation(SYMMETRIES.index(words), SAME, (0,))
    np.testing.assert_array_equal(augmentation.apply(GRID), done)


def test_what_was_drawn_in_words():
    colors = np.array([0, 2, 1, 3, 4, 5, 6, 7, 9, 8], np.uint8)
    words = describe(Augmentation(7, colors, (2, 0, 1)), ("train:0", "train:2", "train:3"), AugmentConfig())
    assert words == {
        "symmetry": "7 of 0-7: mirrored left to right",
        "colours": "1→2 2→1 8→9 9→8",
        "order": "train:3 train:0 train:2",
    }


def test_what_is_switched_off_is_named():
    words = describe(Augmentation(0, SAME, (0,)), ("train:1",), AugmentConfig(dihedral=False, order=False))
    assert words == {
        "symmetry": "not drawn: data.augment.dihedral is false",
        "colours": "as they are",
        "order": "not drawn: data.augment.order is false",
    }
