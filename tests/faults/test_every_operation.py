"""A save in which something happens at each single operation on the disk, in turn."""

import pytest

pytestmark = pytest.mark.slow

FILES = ("weights.safetensors", "moments.safetensors", "prompts.safetensors", "state.json", "manifest.json")
KILLED = 9
FAILED = 256  # the wait status of exit code 1


@pytest.fixture(scope="session", params=[("kill", 1), ("kill", 2), ("lose power", 1)], ids=lambda p: f"{p[0]}-{p[1]}")
def killed(request, sweep):
    return sweep(*request.param), request.param[1]


@pytest.fixture(scope="session", params=[("ENOSPC", 1), ("EIO", 2)], ids=lambda p: p[0])
def failed(request, sweep):
    return sweep(*request.param), request.param


def each(operations):
    """Operations one after another; a file is written in several pieces."""
    return list(dict.fromkeys(operations))


def test_a_save_is_forced_to_disk_before_it_gets_its_name_and_before_the_old_one_goes(killed):
    outcomes, keep_last = killed
    partial, folder = f"checkpoints/.step_{3 * (keep_last + 1):08d}.partial", "checkpoints"
    operations = each(outcome["operation"] for outcome in outcomes)
    written = [f"{kind} {partial}/{file}" for file in FILES for kind in ("open", "write", "fsync")]
    expected = [f"mkdir {partial}", *written, f"fsync {partial}", f"rename {partial}", f"fsync {folder}"]
    begin = operations.index(expected[0])
    saved, removed = operations[begin : begin + len(expected)], operations[begin + len(expected)]
    assert saved == expected
    assert removed == f"rename {folder}/step_00000003"
    assert operations.index("rename .best.partial") < operations.index("fsync .")
    unlinked = [operation for operation in operations if operation.startswith("unlink .best.replaced/")]
    assert len(unlinked) == len(FILES)
    assert all(operations.index("fsync .") < operations.index(operation) for operation in unlinked)


def test_a_process_killed_at_any_operation_leaves_a_whole_checkpoint_and_a_whole_best(killed):
    outcomes, keep_last = killed
    new, old = 3 * (keep_last + 1), 3 * keep_last
    assert {outcome["status"] for outcome in outcomes} == {KILLED}
    named = [outcome["operation"] for outcome in outcomes].index(f"rename checkpoints/.step_{new:08d}.partial")
    for number, outcome in enumerate(outcomes):
        step, best = outcome["resumed"]
        # What has its name may lose it with the power until that is on the disk too.
        assert step in ((old,) if number <= named else (old, new) if number == named + 1 else (new,)), outcome
        assert best in (old, new), outcome


def test_a_save_after_one_that_was_cut_off_succeeds_and_nothing_is_left_of_that(killed):
    outcomes, keep_last = killed
    new = 3 * (keep_last + 1)
    kept = [f"step_{step:08d}" for step in range(6, new + 1, 3)]
    for outcome in outcomes:
        assert outcome["again"] == [new, new], outcome
        assert outcome["files"] == [".lock", "best", "checkpoints", *kept], outcome


def test_an_error_at_any_operation_is_told_with_the_path_and_the_old_checkpoint_stands(failed):
    outcomes, (error, keep_last) = failed
    new, old = 3 * (keep_last + 1), 3 * keep_last
    reason = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}[error]
    for outcome in outcomes:
        assert outcome["status"] == FAILED, outcome
        name = outcome["operation"].split(" ")[1]
        assert reason in outcome["said"], outcome
        if "removed" in name or name == "checkpoints/step_00000003":
            assert "The old checkpoint " in outcome["said"]
            assert " could not be removed " in outcome["said"]
        else:
            place = "best" if "best" in name or name == "." else f"checkpoints/step_{new:08d}"
            assert f"/{place} could not be written ({reason}" in outcome["said"], outcome
        # In place without anything being put in order first.
        assert outcome["left"][0] in (old, new), outcome
        assert outcome["left"][1] in (old, new), outcome
        assert outcome["again"] == [new, new], outcome
