"""Flags, skipped steps and replicas, by hand."""

import pytest

from arcdist.report.condition import raised_flags, replicas, skipped_steps

STEPS = [
    {"step": 10, "flags": [], "skipped_steps": 0},
    {"step": 20, "flags": ["loss_flat"], "skipped_steps": 1},
    {"step": 30, "flags": ["loss_flat", "qwen_gradient_zero"], "skipped_steps": 2},
    {"step": 40, "flags": ["qwen_gradient_zero"]},
]


def test_flags_with_when_they_were_up_and_what_they_mean():
    flat, gradient = raised_flags(STEPS)
    assert (flat.name, flat.first, flat.last, flat.steps, flat.is_up) == ("loss_flat", 20, 30, 2, False)
    assert flat.meaning == "The loss has not fallen since the start of the run."
    assert (gradient.first, gradient.last, gradient.is_up) == (30, 40, True)
    assert gradient.meaning.startswith("The gradient of qwen has been zero")


def test_a_flag_of_another_version_is_named_without_a_meaning():
    (flag,) = raised_flags([{"step": 1, "flags": ["unheard_of"]}])
    assert (flag.name, flag.meaning, flag.mend) == ("unheard_of", "", "")


def test_skipped_steps_are_those_of_the_last_object_that_counts_them():
    assert skipped_steps(STEPS) == 2
    assert skipped_steps([{"step": 1}]) is None


@pytest.mark.parametrize(
    ("processes", "every", "says"),
    [(1, 20, "no replicas"), (2, 0, "were not compared"), (2, 50, "not been compared yet"), (2, 20, "after step 20")],
)
def test_replicas(make_record, processes, every, says):
    # At step 40 the log comes before the comparison.
    record = make_record(processes=processes, steps=tuple(STEPS), config={"distributed.replica_check_every": every})
    assert says in replicas(record)
