"""Which tasks are scored, and under which protocol."""

import json
import logging

import pytest
from shared.answers import Known, write_tasks

from arcdist.config import load_config
from arcdist.config.loader import EVALUATE
from arcdist.errors import ArcdistError, DataError
from arcdist.solving.evaluate import check_answered, find_scored
from arcdist.solving.results import Answers


@pytest.fixture
def scored(tmp_path):
    """What is scored with these flags, for a run on the tasks a and b of a folder `ours`."""
    write_tasks(tmp_path / "ours", "a", "b")

    def find(*flags, run="", trained=("a", "b")):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(f"data: {{source: {tmp_path}/ours, max_side: 10{run}}}")
        loaded = load_config([str(tmp_path / "run"), *map(str, flags)], EVALUATE)
        ours = load_config(["--config", str(tmp_path / "run" / "config.yaml")]).config
        return find_scored(loaded, Known(ours, trained))

    return find


def test_without_a_source_the_runs_own_validation_is_scored(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", first=2)
    own = scored()
    assert ([task.id for task in own.tasks.tasks], own.protocol, own.max_side) == (["a", "b"], "seen", 10)
    assert scored(run=f", validation_source: {tmp_path}/theirs").protocol == "unseen"
    theirs = f"validation_source: {tmp_path}/theirs, validation_split: training"
    joined = f", {theirs}, also_demonstrations_of: ['{tmp_path}/theirs']"
    assert scored(run=joined).protocol == "transductive"


def test_of_another_source_all_tasks_count(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", first=2)
    write_tasks(tmp_path / "large", "e", "f", first=4, side=29)
    write_tasks(tmp_path / "other", "g", "h", first=6)
    given = scored("--data.source", tmp_path / "theirs")
    assert ([task.id for task in given.tasks.used], given.protocol, given.max_side) == (["c", "d"], "unseen", 30)
    # What the run joined to its own tasks is no part of what is asked.
    joined = scored("--data.source", tmp_path / "theirs", run=f", also_demonstrations_of: ['{tmp_path}/other']")
    assert [task.id for task in joined.tasks.tasks] == ["c", "d"]
    less = scored("--data.source", tmp_path / "theirs", "--data.max_tasks", "1", "--data.max_side", "9")
    assert ([task.id for task in less.tasks.used], len(less.tasks.tasks), less.max_side) == (["c"], 2, 9)
    with pytest.raises(DataError, match=r"each of its 2 tasks has a side longer than data\.max_side = 30"):
        scored("--data.source", tmp_path / "large")


def test_a_file_names_the_source_as_flags_do(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", first=2)
    mine = tmp_path / "mine.yaml"
    for source, used, side in (("ours", ["a", "b"], 10), ("theirs", ["c", "d"], 30)):
        mine.write_text(f"data: {{source: {tmp_path / source}, max_side: 10}}")
        given = scored("--config", mine)
        assert ([task.id for task in given.tasks.used], given.max_side) == (used, side)


def test_the_size_of_a_test_output_leaves_no_task_out(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", first=2)
    content = json.loads((tmp_path / "theirs" / "c.json").read_text())
    flags = "--data.source", tmp_path / "theirs", "--data.max_side", "4"
    for output in ([[1] * 5], [[1] * 300], None):
        content["test"][0]["output"] = output
        (tmp_path / "theirs" / "c.json").write_text(json.dumps(content))
        assert [task.id for task in scored(*flags).tasks.used] == ["c", "d"]
    with pytest.raises(DataError, match=r"each of its 2 tasks .* data\.max_side = 3 \(the smallest, of 4\)"):
        scored(*flags[:3], "3")


def test_what_was_trained_on_is_scored_only_if_named(scored, tmp_path):
    write_tasks(tmp_path / "copied", "other", "new", first=1)  # `other` has b's pairs
    for folder, told, protocol in (
        ("ours", r"^The run was trained on .*/ours \(training\), so that a score there says little: leave out", "seen"),
        ("copied", r"^1 of the 2 tasks to score, .*/copied .*\(0 by id, 1 by content; other\)", "overlapping"),
    ):
        flags = "--data.source", tmp_path / folder
        with pytest.raises(DataError, match=told):
            scored(*flags)
        assert scored(*flags, "--data.allow_overlap", tmp_path / folder).protocol == protocol


def test_without_the_training_tasks_ids_are_compared(scored, tmp_path, caplog):
    write_tasks(tmp_path / "theirs", "b", "c", first=4)
    flags = "--data.source", tmp_path / "theirs"
    gone = ", validation_source: null"
    (tmp_path / "ours").rename(tmp_path / "gone")
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=r"^1 tasks of .*/theirs .* trained on \(b\)"):
        scored(*flags, run=gone)
    assert caplog.messages[0].startswith("What the run was trained on cannot be read, so only ids are compared. ")
    assert scored(*flags, "--data.allow_overlap", tmp_path / "theirs").protocol == "overlapping"
    assert scored(*flags, trained=("x",)).protocol == "unseen"


def test_a_limit_leaves_out_the_runs_own_tasks_too(scored, tmp_path):
    write_tasks(tmp_path / "theirs", "c", "d", "e", first=2)
    (tmp_path / "theirs" / "d.json").unlink()
    write_tasks(tmp_path / "large", "d", first=5, side=5)
    (tmp_path / "large" / "d.json").rename(tmp_path / "theirs" / "d.json")
    run = f", validation_source: {tmp_path}/theirs"
    for flags, used, side in (
        (("--data.max_tasks", "2"), ["c", "d"], 10),
        (("--data.max_side", "4"), ["c", "e"], 4),
        (("--data.max_side", "4", "--data.max_tasks", "1"), ["c"], 4),
    ):
        given = scored(*flags, run=run)
        assert [task.id for task in given.tasks.used] == used
        assert ([task.id for task in given.tasks.tasks], given.max_side) == (["c", "d", "e"], side)
    with pytest.raises(DataError, match=r"^Each of the run's 3 tasks has a side longer than data\.max_side = 3"):
        scored("--data.max_side", "3", run=run)


def test_an_evaluation_without_an_answer_ends_with_an_error():
    def answers(*failed):
        return {str(number): Answers(outputs=[], failed=why, seconds=0.0) for number, why in enumerate(failed)}

    check_answered(answers())
    check_answered(answers("no.", None))
    with pytest.raises(
        ArcdistError, match=r"^None of 2 tasks could be answered\. The first: too long\. The files"
    ) as told:
        check_answered(answers("too long.", "no."))
    assert told.value.exit_code == 1
