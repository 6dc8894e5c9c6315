"""The tables with a column for each run, number by number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared.made_records import answers, made_record

from arcdist.analysis.scores import (
    cost_table,
    difference_table,
    efe_table,
    group_runs,
    group_table,
    letter_runs,
    score_table,
    shares_of,
)
from arcdist.analysis.tables import Spread
from arcdist.config.schema import EFE_TERMS
from arcdist.errors import ConfigError


def rows_of(table):
    return {row.key: row for row in table.rows}


def test_runs_have_letters_and_names_that_tell_them_apart():
    records = [made_record("runs/a"), made_record("runs/b")]
    runs = letter_runs(records)
    assert [(run.letter, run.called) for run in runs] == [("A", "A (runs/a)"), ("B", "B (runs/b)")]
    with pytest.raises(ConfigError, match="27 runs are too many to tell apart: name at most 26"):
        letter_runs([made_record(str(number)) for number in range(27)])


def test_best_and_last_are_found_by_measure():
    first = made_record(
        "x",
        epochs=[
            {"val/exact": 0.1, "train/loss": 2.0, "pairs_per_s": 100.0},
            {"val/exact": 0.3, "train/loss": 1.0, "pairs_per_s": 90.0},
            {"val/exact": 0.2, "train/loss": 1.5, "pairs_per_s": 80.0, "floor/copy_exact": 0.01},
            {"train/loss": math.nan},
        ],
    )
    found = rows_of(score_table(letter_runs([first, made_record("y", epochs=[{"val/exact": 0.25}])])))
    assert found["val/exact best"].values == [0.3, 0.25]
    assert found["val/exact best"].texts == ("30.00", "25.00")
    assert found["val/exact best"].marks == (True, False)
    assert found["val/exact last"].values == [0.2, 0.25]
    assert found["val/exact last"].marks == (False, True)
    assert (found["train/loss best"].values, found["train/loss last"].values) == ([1.0, None], [1.5, None])
    assert found["train/loss best"].texts == ("1.000", "–")
    assert found["pairs_per_s best"].values == [100.0, None]
    assert found["floor/copy_exact"].values == [0.01, None]
    assert not any("val/cell" in key for key in found)


def test_scores_on_other_tasks_are_shown_but_none_is_marked_as_better():
    runs = letter_runs(
        [
            made_record("x", epochs=[{"val/exact": 0.3, "train/exact": 0.1}]),
            made_record("y", epochs=[{"val/exact": 0.2, "train/exact": 0.2}], data={"validation": "2" * 32}),
        ]
    )
    table = score_table(runs)
    assert rows_of(table)["val/exact best"].marks == (False, False)
    assert rows_of(table)["train/exact best"].marks == (False, True)
    assert "different validation tasks" in table.note


def test_seeds_are_summarized_by_mean_and_sample_deviation():
    runs = letter_runs(
        [
            made_record("s0", group="base", epochs=[{"val/exact": 0.10, "pairs_per_s": 100.0}]),
            made_record("other", epochs=[{"val/exact": 0.5}]),
            made_record("s1", group="base", epochs=[{"val/exact": 0.20, "pairs_per_s": 104.0}]),
            made_record("s2", group="base", epochs=[{"val/exact": 0.30}]),
        ]
    )
    table = group_table(runs)
    assert table.columns == ("A C D", "B")
    exact = rows_of(table)["val/exact best"]
    mean, other = exact.values
    assert (mean.mean, mean.runs) == (pytest.approx(0.2), 3)
    assert mean.deviation == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert other == Spread(mean=0.5, deviation=None, runs=1, of=1)
    assert exact.texts == ("20.00 ± 10.00", "50.00")
    pace = rows_of(table)["pairs_per_s last"]
    assert pace.values[0].of == 3
    assert pace.texts == ("102.0 ± 2.8 (2 of 3)", "–")  # sqrt((4 + 4) / 1) = 2.83
    assert [len(group.runs) for group in group_runs(runs)] == [3, 1]


def test_without_repeated_runs_there_are_no_means():
    assert group_table(letter_runs([made_record("x"), made_record("y")])) is None


def test_only_what_differs_is_shown():
    runs = letter_runs(
        [
            made_record("x", config={"train.seed": 0, "output.dir": "x", "data.max_side": 10, "train.epochs": None}),
            made_record(
                "y",
                config={
                    "train.seed": 1,
                    "output.dir": "y",
                    "data.max_side": 10,
                    "train.epochs": 3,
                    "agent.kind": "conv",
                },
                git_commit="abcdef0123456789+changes",
                zero_stage=2,
                data={"training": "5" * 32, "validation": "1" * 32},
                versions={"arcdist": "0.1.0", "deepspeed": "0.19.8"},
            ),
        ]
    )
    found = rows_of(difference_table(runs))
    assert {key: row.texts for key, row in found.items()} == {
        "train.seed": ("0", "1"),
        "train.epochs": ("none", "3"),
        "agent.kind": ("–", "conv"),
        "training tasks": ("0000000000", "5555555555"),
        "ZeRO stage": ("none", "2"),
        "git commit": ("0123456", "abcdef0+changes"),
        "version of deepspeed": ("–", "0.19.8"),
    }


def test_runs_that_are_alike_are_called_so():
    table = difference_table(letter_runs([made_record("x"), made_record("y")]))
    assert (table.rows, table.note) == ([], "Configuration, data, device and versions are the same.")


def test_cost_is_counted_by_the_device_hour():
    times = {"time/device_hours": 0.5, "time/elapsed_s": 900.0}
    runs = letter_runs(
        [
            made_record(
                "x",
                exact=[answers("1111"), answers("1110")],
                best=0,
                steps=[{"step": 1, "pairs_per_s": 10.0}, {"step": 2, "pairs_per_s": 30.0, **times}],
                device="NVIDIA H200",
                processes=2,
            ),
            made_record("old", exact=[answers("1100")], steps=[{"step": 1, "pairs_per_s": 5.0}], device="NVIDIA H200"),
        ]
    )
    found = rows_of(cost_table(runs))
    assert found["device_hours"].label == "GPU-hours"
    assert found["device_hours"].values == [0.5, None]
    assert found["hours"].values == [0.25, None]
    assert found["pairs_per_s"].values == [20.0, 5.0]
    assert found["exact_grids"].values == [3, 2]
    assert found["exact_per_device_hour"].values == [6.0, None]
    assert found["exact_per_device_hour"].texts == ("6.000", "–")


def test_hours_of_mixed_devices_are_device_hours():
    runs = letter_runs([made_record("x", device="cpu"), made_record("y", device="NVIDIA H200")])
    assert rows_of(cost_table(runs))["exact_per_device_hour"].label == "exact per device-hour"


def test_shares_are_weighted_by_the_lambdas():
    config = {"efe.lambda_risk": 2.0, "efe.lambda_amb": 0.0, "efe.lambda_step": 1.0, "efe.lambda_cons": 1.0}
    config |= {"efe.lambda_bi": 0.5, "efe.lambda_z": 0.0, "efe.lambda_prompt": 0.0}
    terms = {f"efe/{term}": 1.0 for term in EFE_TERMS} | {"efe/bidirectional": 2.0}
    # 2 · 1 + 0 + 1 + 1 + 0.5 · 2 + 0 + 0 = 5
    runs = letter_runs(
        [
            made_record("epoch", config=config, epochs=[terms, terms], steps=[{"step": 1, **terms, "efe/risk": 9.0}]),
            made_record("step", config=config, epochs=[{}], steps=[{"step": 1, **terms, "efe/risk": 3.5}, {"step": 2}]),
            made_record("none", epochs=[terms]),
        ]
    )
    found = rows_of(efe_table(runs))
    assert found["risk"].values == [0.4, 0.7, None]
    assert found["ambiguity"].values == [0.0, 0.0, None]
    assert found["bidirectional"].values == [0.2, 0.1, None]
    assert found["risk"].texts == ("40.00", "70.00", "–")


@given(
    st.fixed_dictionaries({term: st.floats(0, 1e6) for term in EFE_TERMS}),
    st.fixed_dictionaries({term: st.floats(0, 100) for term in EFE_TERMS}),
)
def test_shares_add_up_to_one(terms, weights):
    shares = shares_of(terms, weights)
    if shares is None:
        assert sum(weights[term] * terms[term] for term in terms) == 0
    else:
        assert math.isclose(sum(shares.values()), 1.0)
        assert all(0 <= share <= 1 for share in shares.values())
