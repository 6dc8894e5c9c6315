import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from arcdist.config import QwenConfig, load_config
from arcdist.data import Pair, Task
from arcdist.errors import ConfigError
from arcdist.preview.catalogue import read_catalogue
from arcdist.preview.given import give
from arcdist.preview.overview import survey
from arcdist.preview.pictures import draw_data, draw_task
from arcdist.preview.tokenizer import load_tokenizer
from arcdist.tracking import ARC_COLORS
from arcdist.tracking.plots import BLUE, VERMILION


def drawn(image, color):
    """Pixels of exactly this colour."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(color))) < 0.01).all(-1).sum())


def filled(color, side=3):
    return np.full((side, side), color, np.uint8)


TASK = Task("t", (Pair(filled(1), filled(2)), Pair(filled(3), filled(4))), (Pair(filled(6), filled(7)),), "made up")


def ask(kind, *flags):
    config = load_config(flags).config
    tokenizer = load_tokenizer(QwenConfig(model="embedded:tiny"))
    return give(config, TASK, kind=kind, index=0, epoch=0, task_rows={}, tokenizer=tokenizer)


def test_a_test_query_has_two_columns_and_its_target_a_row_of_its_own(tmp_path):
    path = tmp_path / "task.png"
    draw_task(ask("test"), path, ["first line", "a second one that is much longer than the picture is wide " * 2])
    left, right = np.array_split(imread(path), 2, axis=1)
    assert [drawn(left, ARC_COLORS[color]) > 2000 for color in range(1, 8)] == [
        *(True, False, True, False), False, *(True, True),
    ]  # fmt: skip
    assert [drawn(right, ARC_COLORS[color]) > 2000 for color in range(1, 8)] == [
        *(False, True, False, True), False, *(False, False),
    ]  # fmt: skip
    # Cells have one size in all rows.
    assert drawn(left, ARC_COLORS[1]) == pytest.approx(drawn(left, ARC_COLORS[7]), rel=0.05)
    assert list(tmp_path.iterdir()) == [path]


def test_a_train_query_has_what_is_augmented_on_the_right(tmp_path):
    given = ask("train", "--data.augment.colors=true")
    draw_task(given, tmp_path / "task.png", [given.query.id])
    before, after = np.array_split(imread(tmp_path / "task.png"), 2, axis=1)
    assert given.augmentation is not None
    for old in (1, 2, 3, 4):
        assert drawn(before, ARC_COLORS[old]) > 2000
        assert drawn(after, ARC_COLORS[given.augmentation.colors[old]]) > 2000
    assert drawn(before, ARC_COLORS[6]) > 2000


def test_the_numbers_of_a_folder(configure, tmp_path):
    draw_data(survey(read_catalogue(configure().data)), tmp_path / "data.png")
    image = imread(tmp_path / "data.png")
    assert image.shape[:2] == (420, 1200)
    lengths, sides, colors = np.array_split(image, 3, axis=1)
    assert drawn(lengths, BLUE) > 100
    assert drawn(lengths, VERMILION) > 100
    assert drawn(sides, BLUE) > 1000
    assert all(drawn(colors, color) > 50 for color in ARC_COLORS)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere/task\.png cannot be written \(No such file or directory\)"):
        draw_task(ask("test"), tmp_path / "nowhere" / "task.png", ["t"])
