"""What is printed, letter by letter where it is short enough, and what is drawn."""

import io
import json
from functools import cache

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console

from arcdist.analysis.preview import (
    ARROW,
    SYMMETRIES,
    PairRow,
    describe,
    draw_task,
    heading,
    preview,
    render_pair_rows,
    show_task,
)
from arcdist.analysis.preview_arguments import PREVIEW, read_arguments
from arcdist.analysis.preview_query import collate_query, load_tokenizer
from arcdist.config import AugmentConfig, QwenConfig, load_config
from arcdist.data import Augmentation, Origin, Pair, Task, TaskSet, TaskSets
from arcdist.errors import ConfigError
from arcdist.tracking.grids import ARC_COLORS

TRAINED = TaskSet(origin=Origin("made up", "training"), tasks=(), used=())
SETS = TaskSets(training=TRAINED, validation=TRAINED)

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


def pair_row(*sides, augmented=True):
    panels = [(f"{side}", np.full((side, side), side % 10, np.uint8)) for side in sides]
    return PairRow(name="pair", before=panels, after=panels if augmented else [])


def printed(rows, width):
    console = Console(file=io.StringIO(), width=width)
    for drawn in render_pair_rows(rows, width, colored=False):
        console.print(drawn)
    return console.file.getvalue().splitlines()


def test_small_grids_stand_in_a_row():
    assert [line.rstrip() for line in printed([pair_row(1, 2)], 80)] == [
        "pair",
        "1   2         1   2",
        "1   2 2   →   1   2 2",
        "    2 2           2 2",
    ]


def test_cells_are_narrow_where_wide_ones_do_not_fit():
    # 2 · 9 + 2 · 3 between the grids, 2 · 3 + 1 at the arrow, and 4 · (2 · 10 − 1), which is 89, or 4 · 10.
    wide, narrow = printed([pair_row(10, 10)], 89), printed([pair_row(10, 10)], 88)
    assert wide[2].split(ARROW)[0].strip() == "   ".join([" ".join("0" * 10)] * 2)
    assert narrow[2].split(ARROW)[0].strip() == "   ".join(["0" * 10] * 2)


def test_one_pair_that_is_too_wide_makes_the_cells_of_all_narrow():
    lines = printed([pair_row(2, 2), pair_row(20, 20)], 100)
    assert lines[2].startswith("22   22   →")


def test_what_does_not_fit_beside_stands_below():
    lines = [line.rstrip() for line in printed([pair_row(30, 30)], 80)]
    assert len(lines) == 1 + 2 * 31
    assert lines[2] == f"    {'0' * 30}   {'0' * 30}"
    assert lines[33] == f"{ARROW}   {'0' * 30}   {'0' * 30}"


def test_or_all_in_a_column():
    assert len(printed([pair_row(30, 30)], 40)) == 1 + 4 * 31
    assert len(printed([pair_row(30, 30, augmented=False)], 40)) == 1 + 2 * 31


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("sides", [(3, 9), (16, 16), (30, 1), (30, 30)])
def test_no_row_of_grids_is_wider_than_the_terminal(width, colored, sides):
    roomy = Console(file=io.StringIO(), width=400)
    for drawn in render_pair_rows([pair_row(*sides), pair_row(*sides, augmented=False)], width, colored=colored):
        roomy.print(drawn)
    assert max(cell_len(line.rstrip()) for line in roomy.file.getvalue().splitlines()) <= width


def drawn(image, color):
    """Pixels of exactly this colour."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(color))) < 0.01).all(-1).sum())


def filled(color, side=3):
    return np.full((side, side), color, np.uint8)


TASK = Task("t", (Pair(filled(1), filled(2)), Pair(filled(3), filled(4))), (Pair(filled(6), filled(7)),), "made up")


def ask(kind, *flags):
    config = load_config(flags).config
    tokenizer = load_tokenizer(QwenConfig(model="embedded:tiny"))
    return collate_query(config, SETS, TASK, kind=kind, index=0, epoch=0, tokenizer=tokenizer)


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
    collated = ask("train", "--data.augment.colors=true")
    draw_task(collated, tmp_path / "task.png", [collated.query.id])
    before, after = np.array_split(imread(tmp_path / "task.png"), 2, axis=1)
    assert collated.augmentation is not None
    for old in (1, 2, 3, 4):
        assert drawn(before, ARC_COLORS[old]) > 2000
        assert drawn(after, ARC_COLORS[collated.augmentation.colors[old]]) > 2000
    assert drawn(before, ARC_COLORS[6]) > 2000


def test_a_folder_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere/task\.png cannot be written \(No such file or directory\)"):
        draw_task(ask("test"), tmp_path / "nowhere" / "task.png", ["t"])


@cache
def configuration(flags):
    own_form = ("--data.max_context_pairs=10", "--data.augment.dihedral=false", "--agent.views_per_reading=1")
    return load_config((*own_form, *flags)).config


def console(width=80, **settings):
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, **settings)


def lines(where):
    return [line.rstrip() for line in where.file.getvalue().splitlines()]


def grid(*rows):
    return np.array([list(map(int, row)) for row in rows], np.uint8)


SHOWN = Task(
    "t",
    (Pair(grid("12"), grid("21")), Pair(grid("3"), grid("33"))),
    (Pair(grid("45"), grid("98", "76")), Pair(grid("6"), None)),
    "made up",
)


def show(where, task=SHOWN, *, kind="test", index=0, epoch=0, flags=(), excluded=None):
    config = configuration(flags)
    tokenizer = load_tokenizer(QwenConfig(model="embedded:tiny"))
    tasks = TaskSet(origin=Origin("here", "training"), tasks=(SHOWN,), used=(SHOWN,))
    sets = TaskSets(training=tasks, validation=tasks)
    collated = collate_query(config, sets, task, kind=kind, index=index, epoch=epoch, tokenizer=tokenizer)
    show_task(where, collated, config, heading(collated, config, str(tasks.origin), excluded))
    return collated


def test_a_test_query_letter_by_letter():
    where = console()
    show(where, excluded="A run would not score it.")
    shown = lines(where)
    start = shown.index("transformation feature   mean of pairs")
    assert shown[:start] == [
        "t:test:0, as validation sees it",
        "here (training): 2 demonstrations, 2 test pairs",
        "A run would not score it.",
        "Nothing is augmented in validation; --epoch E shows what training draws.",
        "",
        "context 1 of 2: train:0",
        "input 1 × 2   output 1 × 2",
        "1 2           2 1",
        "",
        "context 2 of 2: train:1",
        "input 1 × 1   output 1 × 2",
        "3             3 3",
        "",
        "query: test:0",
        "input 1 × 2",
        "4 5",
        "",
        "target of test:0  not given to the models",
        "target 2 × 2",
        "9 8",
        "7 6",
        "",
        "test:1  not given to the models",
        "input 1 × 1",
        "6",
        "",
        "prompt: 20 tokens of arcdist's own tokenizer (qwen.model is embedded:tiny)",
        "Decoded from these, left to right, then below; the end of a line is a token.",
        "",
        "I12   O21   I3   O33   I45   O",
        "",
    ]
    assert shown[start + 2].split() == ["size_change_ratio", "1.5000"]
    assert shown[start + 16].split() == ["output_width", "0.0667"]
    assert shown[start + 17 :] == [
        "",
        "working area  1 × 4",
        "task vector   row 0",
        "tokens        train:0 12, train:1 12, test:0 20, test:1 19",
        "",
    ]


def test_a_train_query_stands_beside_its_augmentation():
    where = console()
    collated = show(where, kind="train", epoch=4, flags=("--data.augment.colors=true",))
    shown = lines(where)
    assert shown[0] == "t:train:0, as training sees it in epoch 4"
    assert shown[2] == "symmetry: not drawn: data.augment.dihedral is false"
    assert shown[3].startswith("colours: ")
    assert shown[4] == "order: train:1"
    new = collated.augmentation.colors
    at = shown.index("target of train:0  not given to the models")
    assert shown[at + 1].split() == ["target", "1", "×", "2"] * 2
    assert shown[at + 2].split() == ["2", "1", "→", str(new[2]), str(new[1])]
    at = shown.index("context 1 of 1: train:1")
    assert shown[at + 2].split() == ["3", "3", "3", "→", *[str(new[3])] * 3]


@pytest.mark.parametrize("kind", ["train", "test"])
def test_of_many_pairs_those_that_were_drawn_are_shown(kind):
    pair = Pair(grid("1"), grid("2"))
    where = console(200)
    many = Task("m", (pair,) * 24 + (Pair(grid("123"), grid("4")),), (pair,), "made up")
    flags = ("--data.max_context_pairs", "3", "--data.augment.order", "false")
    collated = show(where, many, kind=kind, index=0, epoch=5, flags=flags)
    shown = lines(where)
    possible, when = (24, "drawn anew each epoch") if kind == "train" else (25, "the same in every validation")
    assert f"context: 3 of {possible} pairs, {when}: data.max_context_pairs" in shown
    assert len(collated.shown) == 3
    assert [line for line in shown if line.startswith(("context ", "train:"))] == [
        f"context {number} of 3: train:{place}" for number, place in enumerate(collated.shown, start=1)
    ]
    assert shown[-2].startswith(f"tokens        {kind}:0 {len(collated.ids)}, 25 other queries of the task, all ")


def test_a_task_beyond_arcs_limit_is_not_shown(tmp_path):
    for name, side in (("small", 3), ("huge", 300)):
        pairs = [{"input": [[1] * side], "output": [[2]]}] * 2
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": pairs, "test": pairs}))
    loaded = load_config(["huge", "--data.source", str(tmp_path)], PREVIEW)
    with pytest.raises(ConfigError) as refused:
        preview(loaded.config, read_arguments(loaded))
    assert str(refused.value) == (
        f"Task huge of {tmp_path} (training) has a side of 300, and models are given sides up to 30: a run always "
        f"leaves it out, and it cannot be shown as one would see it."
    )


def test_an_unknown_target_is_said_to_be():
    where = console()
    show(where, index=1)
    shown = lines(where)
    assert shown[shown.index("target of test:1  not known") + 1] == ""


@pytest.mark.parametrize(("width", "lines_of_grids"), [(40, 14), (80, 7), (120, 7), (140, 5)])
def test_a_large_task_is_not_wrapped(width, lines_of_grids):
    large = Pair((np.arange(900).reshape(30, 30) % 10).astype(np.uint8), np.zeros((30, 30), np.uint8))
    where = console(width)
    collated = show(where, Task("t", (large, large, large), (large,), "made up"), kind="train")
    shown = lines(where)
    assert max(map(cell_len, shown)) <= width
    prompt = next(place for place, line in enumerate(shown) if line.startswith("prompt: "))
    rows = [line.count("0" * 30) + line.count("0123456789" * 3) for line in shown[:prompt]]
    # Two context pairs, the query and its target, twice each; and the test pair.
    assert sum(rows) == 30 * (2 * 4 + 2 + 2 + 2)
    assert len([row for row in rows if row]) == 30 * lines_of_grids
    assert len(collated.ids) == 2 * 2 * (1 + 30 * 31) + (1 + 30 * 31) + 1


def test_colours_need_a_terminal():
    plain, colored = console(), console(force_terminal=True, color_system="truecolor")
    show(plain)
    show(colored)
    assert "\x1b" not in plain.file.getvalue()
    assert "48;2;0;116;217m1 \x1b" in colored.file.getvalue()


def test_no_color_leaves_digits():
    where = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", no_color=True, highlight=False
    )
    show(where)
    assert "48;" not in where.file.getvalue()
    assert "38;" not in where.file.getvalue()
    assert "\n1 2           2 1" in where.file.getvalue()
