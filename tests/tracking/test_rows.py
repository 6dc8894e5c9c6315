"""Records become rows and records again, whatever W&B makes of their numbers."""

import json

from hypothesis import given
from hypothesis import strategies as st
from shared.made_runs import make_run

from arcdist.tracking.rows import make_row, records_of, rows_of
from arcdist.tracking.run_record import read_run_folder
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
