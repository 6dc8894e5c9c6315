from pathlib import Path

import pytest

from arcdist.analysis.preview_arguments import PREVIEW, PreviewArguments, read_arguments
from arcdist.config import load_config
from arcdist.errors import ConfigError


def read(*argv):
    return read_arguments(load_config(argv, PREVIEW))


@pytest.mark.parametrize(
    ("argv", "kind", "index", "epoch"),
    [
        (["x"], "test", 0, 0),
        (["x", "--query", "test:2"], "test", 2, 0),
        (["--query=train:1", "x"], "train", 1, 0),
        (["x", "--epoch", "3"], "train", 0, 3),
        (["x", "--epoch=3", "--query", "train:4"], "train", 4, 3),
    ],
)
def test_the_query_is_the_first_test_pair_or_that_of_training(argv, kind, index, epoch):
    assert read(*argv) == PreviewArguments(task_ids=("x",), kind=kind, index=index, epoch=epoch, picture=None)


def test_pictures_of_several_tasks_have_names_of_their_own():
    alone, both = read("x", "--picture", "a/b.png"), read("x", "y", "x", "--picture=a/b.png")
    assert alone.picture_of("x") == Path("a/b.png")
    assert both.task_ids == ("x", "y")
    assert both.picture_of("y") == Path("a/b_y.png")
    assert both.picture_of("Copy/1") == Path("a/b_Copy_1.png")
    assert read("x").picture_of("x") is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--epoch", "-1"], "--epoch is '-1': choose a whole number of at least 0"),
        (["x", "--epoch", "1.5"], "--epoch is '1.5'"),
        (["x", "--query", "test"], "--query is 'test': choose train:N or test:N"),
        (["x", "--query", "train:-1"], "--query is 'train:-1'"),
        (["x", "--query", "valid:0"], "--query is 'valid:0'"),
        (["x", "--query", "test:0", "--epoch", "1"], "--query test:0 is asked in validation, which augments nothing"),
        (["--query", "train:0"], "--query is about a task, and none is named"),
        (["--epoch", "0"], "--epoch is about a task, and none is named"),
        (["x", "--picture", "x.jpg"], r"--picture is 'x\.jpg': give a file whose name ends in \.png"),
    ],
)
def test_what_has_no_meaning_is_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        read(*argv)
