"""A folder counted by hand, printed and drawn."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console

from arcdist.analysis.data_overview import draw_data, histogram, show_data, survey
from arcdist.data import LeakReport
from arcdist.errors import DataError
from arcdist.tracking.grids import ARC_COLORS
from arcdist.tracking.plots import BLUE, VERMILION

PAIR = {"input": [[1]], "output": [[2]]}


def shown(config, width=200):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    show_data(console, survey(config.data), config.data)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def cells(lines):
    """The cells of all tables, row by row."""
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return [row for row in rows if row and "─" not in row[0]]


def test_queries_are_counted_with_their_tokens(configure):
    overview = survey(configure().data)
    assert dict(zip(overview.training.ids, overview.training.lengths(), strict=True)) == {
        "a:train:0": 13, "a:train:1": 13, "b:train:0": 14, "b:train:1": 14,
    }  # fmt: skip
    assert dict(zip(overview.validation.ids, overview.validation.lengths(), strict=True)) == {
        "a:test:0": 21, "b:test:0": 24, "c:test:0": 14,
    }  # fmt: skip


def test_queries_that_see_some_of_their_pairs_are_counted(configure):
    rows = {row[0]: row[1:] for row in cells(shown(configure("--data.max_context_pairs", "1")))}
    # Task b has two demonstrations more than one to show; a train query of two has one other.
    assert rows["that see 1 of their pairs"] == ["0", "2"]


def test_max_tasks_leaves_out_what_comes_after(configure):
    assert cells(shown(configure("--data.max_tasks", "1")))[1:4] == [
        ["tasks", "1"],
        ["left out by data.max_side 10", "1"],
        ["left out by data.max_tasks 1", "2"],
    ]
    assert cells(shown(configure()))[1:4] == [
        ["tasks", "3"],
        ["left out by data.max_side 10", "1"],
        ["demonstration pairs", "5"],
    ]


def test_tasks_beyond_arcs_limit_are_counted_apart(configure, folder):
    (folder / "huge.json").write_text(json.dumps({"train": [{"input": [[1] * 300], "output": [[1]]}], "test": []}))
    assert cells(shown(configure()))[1:5] == [
        ["tasks", "3"],
        ["left out by ARC's limit of 30 a side", "1"],
        ["left out by data.max_side 10", "1"],
        ["demonstration pairs", "5"],
    ]


def test_the_leak_guard_speaks(configure, folder, tmp_path):
    scored = tmp_path / "scored"
    scored.mkdir()
    (scored / "renamed.json").write_text((folder / "a.json").read_text())
    flags = ("--data.validation_source", str(scored))
    refused = survey(configure(*flags).data)
    assert isinstance(refused.leaks, DataError)
    assert "(0 by id, 1 by content; renamed)" in str(refused.leaks)
    assert [str(tasks.origin) for tasks in refused.sets.distinct] == [f"{folder} (training)", f"{scored} (evaluation)"]
    accepted = survey(configure(*flags, "--data.allow_overlap", str(scored)).data)
    assert isinstance(accepted.leaks, LeakReport)
    assert accepted.leaks.shared_contents == 1
    assert survey(configure().data).leaks == LeakReport(
        shared_ids=0, shared_contents=0, examples=(), repeated_test_pairs=0
    )


def test_bins_have_round_edges():
    width, counts = histogram([np.array([0, 9, 10, 99]), np.array([50])], most_bins=10)
    assert width == 10
    assert [kind.tolist() for kind in counts] == [[2, 1, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]]
    assert histogram([np.array([100])], most_bins=10)[0] == 20


samples = st.lists(st.integers(1, 9000), min_size=1).map(np.array)


@given(samples, samples)
def test_every_sample_is_counted_once(one, other):
    width, counts = histogram([one, other])
    assert [kind.sum() for kind in counts] == [len(one), len(other)]
    bins = {len(kind) for kind in counts}
    assert bins == {max(one.max(), other.max()) // width + 1}
    assert bins.pop() <= 20


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"train": [PAIR], "test": [PAIR]}, "None of the 1 tasks has a train query: give tasks with two or more"),
        ([PAIR, PAIR], "its tasks have no test pairs, .* name tasks to score with --data.validation_source"),
    ],
)
def test_what_asks_nothing_is_refused_as_by_a_run(configure, folder, task, message):
    for file in folder.glob("*.json"):
        file.unlink()
    (folder / "a.json").write_text(json.dumps(task))
    with pytest.raises(DataError, match=message):
        survey(configure().data)


def pixels(image, color):
    """How many have exactly this colour."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(color))) < 0.01).all(-1).sum())


def test_the_numbers_of_a_folder(configure, tmp_path):
    draw_data(survey(configure().data), tmp_path / "data.png")
    image = imread(tmp_path / "data.png")
    assert image.shape[:2] == (420, 1200)
    lengths, sides, colors = np.array_split(image, 3, axis=1)
    assert pixels(lengths, BLUE) > 100
    assert pixels(lengths, VERMILION) > 100
    assert pixels(sides, BLUE) > 1000
    assert all(pixels(colors, color) > 50 for color in ARC_COLORS)


def test_a_data_source_in_numbers(configure, folder):
    assert cells(shown(configure("--data.max_tasks", "5"))) == [
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
    lines = [line for line in shown(config, 80) if line]
    assert lines[-2:] == [
        "No test pair has a known output: a run would be refused.",
        "Leak guard: a run would be refused.",
    ]
    assert max(map(cell_len, lines)) <= 80
