"""What stands on the terminal, letter by letter where it is short enough."""

import io
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console

from arcdist.analysis.catalogue import read_catalogue, survey
from arcdist.analysis.screens import (
    ARROW,
    SYMMETRIES,
    Panel,
    Strip,
    describe,
    draw_cells,
    draw_data,
    draw_strips,
    draw_task,
    drawn_width,
    has_colors,
    heading,
    show_data,
    show_task,
)
from arcdist.analysis.seen import give, load_tokenizer
from arcdist.config import AugmentConfig, QwenConfig, load_config
from arcdist.data import Augmentation, Pair, Task
from arcdist.errors import ConfigError
from arcdist.tracking import ARC_COLORS
from arcdist.tracking.plots import BLUE, VERMILION

GRID = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]], np.uint8)
grids = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)


def styles(text):
    """Character and style of each printed cell, line by line."""
    console = Console(color_system="truecolor", force_terminal=True, no_color=False, file=io.StringIO(), width=200)
    lines = console.render_lines(text, pad=False)
    return [[(char, segment.style) for segment in line for char in segment.text] for line in lines]


def test_without_colours_cells_are_digits():
    assert draw_cells(GRID, wide=True, colored=False).plain == "0 1 2\n3 4 5\n6 7 8"
    assert draw_cells(GRID, wide=False, colored=False).plain == "012\n345\n678"


@given(grids)
def test_wide_coloured_cells_hold_their_digit(grid):
    lines = styles(draw_cells(grid, wide=True, colored=True))
    digits = [[char for char, _ in line[::2]] for line in lines]
    assert digits == [[str(color) for color in row] for row in grid.tolist()]
    for line, row in zip(lines, grid.tolist(), strict=True):
        behind = [style.bgcolor.get_truecolor().hex.upper() for _, style in line]
        assert behind == [ARC_COLORS[color].upper() for color in row for _ in range(2)]
        assert all(style.color != style.bgcolor for _, style in line)


@given(grids)
def test_a_narrow_coloured_character_holds_two_cells(grid):
    top, *lines, bottom = styles(draw_cells(grid, wide=False, colored=True))
    assert "".join(char for char, _ in top) == f"┌{'─' * grid.shape[1]}┐"
    assert "".join(char for char, _ in bottom) == f"└{'─' * grid.shape[1]}┘"
    rows = []
    for line in lines:
        assert (line[0][0], line[-1][0]) == ("│", "│")
        assert {char for char, _ in line[1:-1]} == {"▀"}
        rows.append([style.color for _, style in line[1:-1]])
        rows.append([style.bgcolor for _, style in line[1:-1]])
    if len(grid) % 2:
        assert set(rows.pop()) == {None}
    shown = [[color.get_truecolor().hex.upper() for color in row] for row in rows]
    assert shown == [[ARC_COLORS[color].upper() for color in row] for row in grid.tolist()]


@given(grids, st.booleans(), st.booleans())
def test_the_width_is_as_said(grid, wide, colored):
    lines = draw_cells(grid, wide=wide, colored=colored).plain.split("\n")
    assert {cell_len(line) for line in lines} == {drawn_width(grid, wide=wide, colored=colored)}


def test_ten_colours_stay_apart_in_a_terminal_of_256():
    numbers = [Color.parse(color).downgrade(ColorSystem.EIGHT_BIT).number for color in ARC_COLORS]
    assert len(set(numbers)) == 10


@pytest.mark.parametrize(
    ("system", "no_color", "colored"),
    [
        *(("truecolor", False, True), ("256", False, True)),
        *(("standard", False, False), (None, False, False), ("truecolor", True, False)),
    ],
)
def test_colours_are_used_where_they_can_be_told_apart(system, no_color, colored):
    assert has_colors(Console(color_system=system, no_color=no_color, force_terminal=True)) is colored


@pytest.mark.parametrize(
    ("environment", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"TERM": "xterm"}, False)],
)
def test_the_environment_decides(environment, colored):
    settings = {"TERM": "xterm-256color", **environment}
    assert has_colors(Console(force_terminal=True, _environ=settings)) is colored
    assert not has_colors(Console(file=io.StringIO(), _environ=settings))


GRID_of_words = np.arange(6, dtype=np.uint8).reshape(2, 3)
SAME = np.arange(10, dtype=np.uint8)


@pytest.mark.parametrize(
    ("words", "done"),
    [
        ("as it is", GRID_of_words),
        ("turned left by 90°", np.rot90(GRID_of_words)),
        ("turned by 180°", np.rot90(GRID_of_words, 2)),
        ("turned right by 90°", np.rot90(GRID_of_words, -1)),
        ("mirrored at the diagonal from the upper left", GRID_of_words.T),
        ("mirrored top to bottom", np.flipud(GRID_of_words)),
        ("mirrored at the diagonal from the upper right", np.rot90(GRID_of_words, 2).T),
        ("mirrored left to right", np.fliplr(GRID_of_words)),
    ],
)
def test_the_symmetry_is_the_one_that_the_words_say(words, done):
    augmentation = Augmentation(SYMMETRIES.index(words), SAME, (0,))
    np.testing.assert_array_equal(augmentation.apply(GRID_of_words), done)


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


def strip(*sides, augmented=True):
    panels = [Panel(caption=f"{side}", grid=np.full((side, side), side % 10, np.uint8)) for side in sides]
    return Strip(name="pair", note="", before=panels, after=panels if augmented else [])


def printed(strips, width):
    console = Console(file=io.StringIO(), width=width)
    for drawn in draw_strips(strips, width, colored=False):
        console.print(drawn)
    return console.file.getvalue().splitlines()


def test_small_grids_stand_in_a_row():
    assert [line.rstrip() for line in printed([strip(1, 2)], 80)] == [
        "pair",
        "1   2         1   2",
        "1   2 2   →   1   2 2",
        "    2 2           2 2",
    ]


def test_cells_are_narrow_where_wide_ones_do_not_fit():
    # 2 · 9 + 2 · 3 between the grids, 2 · 3 + 1 at the arrow, and 4 · (2 · 10 − 1), which is 89, or 4 · 10.
    wide, narrow = printed([strip(10, 10)], 89), printed([strip(10, 10)], 88)
    assert wide[2].split(ARROW)[0].strip() == "   ".join([" ".join("0" * 10)] * 2)
    assert narrow[2].split(ARROW)[0].strip() == "   ".join(["0" * 10] * 2)


def test_one_pair_that_is_too_wide_makes_the_cells_of_all_narrow():
    lines = printed([strip(2, 2), strip(20, 20)], 100)
    assert lines[2].startswith("22   22   →")


def test_what_does_not_fit_beside_stands_below():
    lines = [line.rstrip() for line in printed([strip(30, 30)], 80)]
    assert len(lines) == 1 + 2 * 31
    assert lines[2] == f"    {'0' * 30}   {'0' * 30}"
    assert lines[33] == f"{ARROW}   {'0' * 30}   {'0' * 30}"


def test_or_all_in_a_column():
    assert len(printed([strip(30, 30)], 40)) == 1 + 4 * 31
    assert len(printed([strip(30, 30, augmented=False)], 40)) == 1 + 2 * 31


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("sides", [(3, 9), (16, 16), (30, 1), (30, 30)])
def test_no_row_of_grids_is_wider_than_the_terminal(width, colored, sides):
    roomy = Console(file=io.StringIO(), width=400)
    for drawn in draw_strips([strip(*sides), strip(*sides, augmented=False)], width, colored=colored):
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


@cache
def configuration(flags):
    return load_config(flags).config


def console(width=80, **settings):
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, **settings)


def lines(where):
    return [line.rstrip() for line in where.file.getvalue().splitlines()]


def grid(*rows):
    return np.array([list(map(int, row)) for row in rows], np.uint8)


TASK_of_screens = Task(
    "t",
    (Pair(grid("12"), grid("21")), Pair(grid("3"), grid("33"))),
    (Pair(grid("45"), grid("98", "76")), Pair(grid("6"), None)),
    "made up",
)


def show(where, task=TASK_of_screens, *, kind="test", index=0, epoch=0, flags=(), exclusion=None):
    config = configuration(flags)
    tokenizer = load_tokenizer(QwenConfig(model="embedded:tiny"))
    given = give(config, task, kind=kind, index=index, epoch=epoch, task_rows={"t": 3}, tokenizer=tokenizer)
    head = heading(given, config, epoch=epoch, origin="here (training)", exclusion=exclusion)
    show_task(where, given, config, head)
    return given


def test_a_test_query_letter_by_letter():
    where = console()
    show(where, exclusion="A run would not score it.")
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
        "task vector   row 3",
        "tokens        train:0 12, train:1 12, test:0 20, test:1 19",
        "",
    ]


def test_a_train_query_stands_beside_its_augmentation():
    where = console()
    given = show(where, kind="train", epoch=4, flags=("--data.augment.colors=true",))
    shown = lines(where)
    assert shown[0] == "t:train:0, as training sees it in epoch 4"
    assert shown[2] == "symmetry: not drawn: data.augment.dihedral is false"
    assert shown[3].startswith("colours: ")
    assert shown[4] == "order: train:1"
    new = given.augmentation.colors
    at = shown.index("target of train:0  not given to the models")
    assert shown[at + 1].split() == ["target", "1", "×", "2"] * 2
    assert shown[at + 2].split() == ["2", "1", "→", str(new[2]), str(new[1])]
    at = shown.index("context 1 of 1: train:1")
    assert shown[at + 2].split() == ["3", "3", "3", "→", *[str(new[3])] * 3]


def test_an_unknown_target_is_said_to_be():
    where = console()
    show(where, index=1)
    shown = lines(where)
    assert shown[shown.index("target of test:1  not known") + 1] == ""


@pytest.mark.parametrize(("width", "lines_of_grids"), [(40, 14), (80, 7), (120, 7), (140, 5)])
def test_a_large_task_is_not_wrapped(width, lines_of_grids):
    large = Pair((np.arange(900).reshape(30, 30) % 10).astype(np.uint8), np.zeros((30, 30), np.uint8))
    where = console(width)
    given = show(where, Task("t", (large, large, large), (large,), "made up"), kind="train")
    shown = lines(where)
    assert max(map(cell_len, shown)) <= width
    prompt = next(place for place, line in enumerate(shown) if line.startswith("prompt: "))
    rows = [line.count("0" * 30) + line.count("0123456789" * 3) for line in shown[:prompt]]
    # Two context pairs, the query and its target, twice each; and the test pair.
    assert sum(rows) == 30 * (2 * 4 + 2 + 2 + 2)
    assert len([row for row in rows if row]) == 30 * lines_of_grids
    assert len(given.ids) == 2 * 2 * (1 + 30 * 31) + (1 + 30 * 31) + 1


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


def test_a_data_source_in_numbers(configure, folder):
    where, config = console(200), configure("--data.max_tasks", "5")
    show_data(where, survey(read_catalogue(config.data)), config.data)
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines(where)]
    rows = [row for row in rows if row and "─" not in row[0]]
    assert rows == [
        ["tasks", f"{folder} (training)"],
        ["tasks", "3"],
        ["left out by data.max_side 10", "1"],
        ["left out by data.max_tasks 5", "0"],
        ["demonstration pairs", "5"],
        ["tasks with one of them only", "1"],
        ["test pairs", "3"],
        ["without a known output", "1"],
        ["outputs as large as inputs", "1 tasks, 33.3%"],
        ["sides", "1 to 3, median 1"],
        ["cells of a grid", "1 to 4, median 2"],
        ["queries", "training", "validation"],
        ["number", "4", "3"],
        ["with a known output", "4", "2"],
        ["tokens", "54", "59"],
        ["tokens of one", "13 to 14, median 13", "14 to 24, median 21"],
        ["the longest", "b:train:0", "b:test:0"],
        ["tokens of a query", "training", "validation"],
        *([f"{start} to {start + 1}", "0", "0"] for start in range(0, 12, 2)),
        ["12 to 13", "2 " + "█" * 18, "0"],
        ["14 to 15", "2 " + "█" * 18, "1 " + "█" * 18],
        *([f"{start} to {start + 1}", "0", "0"] for start in (16, 18)),
        ["20 to 21", "0", "1 " + "█" * 18],
        ["22 to 23", "0", "0"],
        ["24 to 25", "0", "1 " + "█" * 18],
        ["colour: of cells, of tasks", f"{folder} (training)"],
        *([str(number), share] for number, share in enumerate((
            "6.5%, 33.3%", "19.4%, 66.7%", "6.5%, 33.3%", "6.5%, 33.3%", "16.1%, 33.3%",
            "6.5%, 33.3%", "6.5%, 33.3%", "16.1%, 33.3%", "3.2%, 33.3%", "12.9%, 33.3%",
        ))),
        ["Leak guard: not needed, as the test pairs of the tasks that are trained on are scored."],
    ]  # fmt: skip


def test_what_would_be_refused_is_said(configure, folder, tmp_path):
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "b.json").write_text((folder / "b.json").read_text())
    config = configure("--data.validation_source", str(tmp_path / "scored"))
    where = console()
    show_data(where, survey(read_catalogue(config.data)), config.data)
    shown = [line for line in lines(where) if line]
    assert shown[-2:] == [
        "No test pair has a known output: a run would be refused.",
        "Leak guard: a run would be refused.",
    ]
    assert max(map(cell_len, shown)) <= 80
