import json

import pytest

from arcdist.config import DataConfig
from arcdist.doctor.finding import Verdict
from arcdist.doctor.tasks import check_tasks
from arcdist.errors import DataError

PAIR = {"input": [[1]], "output": [[2]]}


@pytest.fixture
def source(tmp_path):
    """A folder of three tasks, the first of which has a test pair that can be scored."""

    def make(name="tasks", *, scored=1):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(3):
            test = {"input": [[number]], "output": [[0]]} if number < scored else {"input": [[number]]}
            content = {"train": [PAIR, {"input": [[3, number]], "output": [[4]]}], "test": [test]}
            (folder / f"{number}.json").write_text(json.dumps(content))
        return str(folder)

    return make


def test_tasks_and_what_can_be_scored_are_counted(source):
    folder = source()
    finding = check_tasks(DataConfig(source=folder, max_tasks=2))
    assert finding.verdict is Verdict.OK
    assert finding.found == f"{folder} (training): 2 tasks; {folder} (training): 1 test pairs to score"
    # Machines that read other tasks would train apart.
    assert finding.differing is Verdict.FAIL


def test_nothing_to_score_is_a_mistake(source):
    finding = check_tasks(DataConfig(source=source(scored=0)))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert "--data.validation_source" in finding.advice


def test_what_a_run_refuses_is_refused(source, tmp_path):
    with pytest.raises(DataError, match="Unknown data source"):
        check_tasks(DataConfig(source=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="are trained on"):
        check_tasks(DataConfig(source=source("a"), validation_source=source("b")))
