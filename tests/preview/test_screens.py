"""What stands on the terminal, letter by letter where it is short enough."""

import io
from functools import cache

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from arcdist.config import QwenConfig, load_config
from arcdist.data import Pair, Task
from arcdist.preview.catalogue import read_catalogue
from arcdist.preview.data_screen import show_data
from arcdist.preview.given import give
from arcdist.preview.overview import survey
from arcdist.preview.task_screen import heading, show_task
from arcdist.preview.tokenizer import load_tokenizer


@cache
def configuration(flags):
    return load_config(flags).config


def console(width=80, **settings):
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, **settings)


def lines(where):
    return [line.rstrip() for line in where.file.getvalue().splitlines()]


def grid(*rows):
    return np.array([list(map(int, row)) for row in rows], np.uint8)


TASK = Task(
    "t",
    (Pair(grid("12"), grid("21")), Pair(grid("3"), grid("33"))),
    (Pair(grid("45"), grid("98", "76")), Pair(grid("6"), None)),
    "made up",
)


def show(where, task=TASK, *, kind="test", index=0, epoch=0, flags=(), exclusion=None):
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
