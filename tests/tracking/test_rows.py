"""Records become rows and records again, whatever W&B makes of their numbers."""

import io
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shared.made_runs import make_run

from arcdist.analysis.record import read_run_folder
from arcdist.tracking.grids import ARC_COLORS
from arcdist.tracking.metrics import ShownQuery
from arcdist.tracking.rows import difference_of, make_row, picture_of, png_of, records_of, rows_of, strip_of
from arcdist.tracking.wandb_tables import query_table, shown_table, validation_of

NAMES = st.sampled_from(["loss", "efe/risk", "train/exact", "pairs_per_s", "time/elapsed_s", "grad_norm/qwen"])
# W&B has no -0.0.
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
STEPS = st.fixed_dictionaries(
    {"step": st.integers(1, 10**9), "epoch": st.just(3), "flags": st.lists(st.sampled_from(["a", "b"]))}
)
SCORES = st.dictionaries(st.sampled_from(["val/exact", "floor/copy_exact", "solver/size"]) | NAMES, NUMBERS)


def as_w_and_b_keeps_it(numbers):
    """Whole floats lose their point, and W&B adds numbers of its own."""
    kept = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in numbers.items()
    }
    return {**kept, "_step": 7, "_runtime": 1.5, "validation/queries": {"path": "somewhere"}}


@given(STEPS, st.dictionaries(NAMES, NUMBERS), SCORES)
def test_records_come_back_with_their_types(step, numbers, scores):
    step = {**step, **numbers}
    epoch = {"epoch": 3, **scores, "train/loss": 1.0, "solver/count": 20}
    whole = frozenset({"step", "epoch", "epoch/solver/count"})
    kept = as_w_and_b_keeps_it(make_row(7, step, epoch).numbers)
    back = records_of(kept, whole)
    assert [json.dumps(one, sort_keys=True) for one in back] == [
        json.dumps(one, sort_keys=True) for one in (step, epoch)
    ]
    assert records_of(as_w_and_b_keeps_it(make_row(7, step).numbers), whole)[1] is None
    assert records_of(as_w_and_b_keeps_it(make_row(7, None, epoch).numbers), whole)[0] is None


def test_an_epoch_stands_in_the_row_of_its_last_step(tmp_path):
    record = read_run_folder(make_run(tmp_path / "run"))
    rows = rows_of(record.steps, record.epochs, record.validations)
    assert [row.step for row in rows] == list(range(10, 121, 10))
    assert [row.step for row in rows if row.ends_epoch] == [40, 80, 120]
    assert [row.validation for row in rows if row.validation] == list(record.validations)
    # Without validations it is told by the steps.
    assert [row.numbers for row in rows_of(record.steps, record.epochs, ())] == [row.numbers for row in rows]


def test_an_epoch_whose_end_was_not_logged_has_a_row_of_its_own(tmp_path):
    record = read_run_folder(make_run(tmp_path / "run", epochs=1))
    rows = rows_of(record.steps[:3], record.epochs, record.validations)
    assert [row.step for row in rows] == [10, 20, 30, 40]
    assert records_of(rows[-1].numbers, frozenset({"epoch", "epoch/solver/size"})) == (None, record.epochs[0])


def test_a_flag_that_ended_the_run_is_in_the_row_of_its_step():
    steps = [{"step": 5, "epoch": 0, "loss": 1.0, "flags": []}, {"step": 5, "epoch": 0, "flags": ["loss_flat"]}]
    (row,) = rows_of(steps, [], [])
    assert row.numbers == {"step": 5, "epoch": 0, "loss": 1.0, "flags": ["loss_flat"]}


def test_a_validation_comes_back_from_its_tables(tmp_path):
    for validation in read_run_folder(make_run(tmp_path / "run")).validations:
        tables = [
            json.loads(json.dumps(dict(zip(("columns", "data"), table, strict=True))))
            for table in (query_table(validation), shown_table(validation, lambda picture: picture.size))
        ]
        assert validation_of(validation.epoch, validation.step, *tables) == validation
        columns = tables[1]["columns"]
        assert columns[:9] == ["id", "input", "step 1", "step 2", "step 3", "answer", "target", "difference", "exact"]
        assert validation_of(validation.epoch, validation.step, tables[0], None).shown == ()


GRIDS = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 9)] * width), min_size=1, max_size=6).map(tuple)
)


def colors_of(picture):
    """The colour in the middle of each cell, as `#RRGGBB`."""
    pixels = np.asarray(picture.convert("RGB"))[4::8, 4::8]
    return [["#{:02X}{:02X}{:02X}".format(*map(int, pixel)) for pixel in row] for row in pixels]


@given(GRIDS)
def test_each_cell_has_its_colour_also_in_the_file(grid):
    expected = [[ARC_COLORS[color] for color in row] for row in grid]
    picture = picture_of(grid)
    assert (picture.width, picture.height) == (8 * len(grid[0]) + 1, 8 * len(grid) + 1)
    assert colors_of(picture) == expected
    assert colors_of(Image.open(io.BytesIO(png_of(picture)))) == expected


def test_what_is_wrong_stands_out_and_what_neither_grid_has_is_paper():
    right, wrong, paper = "#EEEEEE", "#D55E00", "#FFFFFF"
    assert colors_of(difference_of(((1, 2), (3, 4)), ((1, 2), (3, 5)))) == [[right, right], [right, wrong]]
    # A row more in the one, a column more in the other.
    assert colors_of(difference_of(((1,), (3,)), ((1, 2),))) == [[right, wrong], [wrong, paper]]


def test_a_strip_shows_all_of_a_query():
    query = ShownQuery(id="a", input=((0, 1),), target=((2,),), steps=(((3,),), ((4,),)), prediction=((2,), (2,)))
    strip = strip_of(query)
    widths = [17, 9, 9, 9, 9, 9]
    assert (strip.width, strip.height) == (sum(widths) + 5 * 12, 17)
    starts = [sum(widths[:place]) + 12 * place for place in range(len(widths))]
    pixels = np.asarray(strip.convert("RGB"))
    first = [ARC_COLORS.index("#{:02X}{:02X}{:02X}".format(*map(int, pixels[4, start + 4]))) for start in starts[:-1]]
    assert first == [0, 3, 4, 2, 2]
