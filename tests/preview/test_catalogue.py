import pytest

from arcdist.errors import ConfigError, DataError
from arcdist.preview.catalogue import read_catalogue


def ids(tasks):
    return [task.id for task in tasks]


def test_what_is_used_and_what_is_left_out(configure):
    catalogue = read_catalogue(configure("--data.max_tasks", "2").data)
    assert ids(catalogue.training.tasks) == ["a", "b", "c", "wide"]
    assert ids(catalogue.training.used) == ["a", "b"]
    reasons = {task.id: catalogue.exclusion(task, "train") for task in catalogue.training.tasks}
    assert reasons == {
        "a": None,
        "b": None,
        "c": "A run would not train on it: it is not among the first data.max_tasks = 2.",
        "wide": "A run would not train on it: its longest side is 12, data.max_side is 10.",
    }
    assert catalogue.exclusion(catalogue.training.tasks[3], "test").startswith("A run would not score it: its longest")
    assert catalogue.shelves == (catalogue.training,)


def test_a_query_is_looked_for_where_its_kind_comes_from(configure, tmp_path):
    scored = tmp_path / "scored"
    scored.mkdir()
    (scored / "a.json").write_text((tmp_path / "tasks" / "c.json").read_text())
    (scored / "z.json").write_text((tmp_path / "tasks" / "b.json").read_text())
    catalogue = read_catalogue(configure("--data.validation_source", str(scored)).data)
    assert catalogue.find("a", "train")[1] is catalogue.training
    assert catalogue.find("a", "test")[1] is catalogue.validation
    trained, scored_task = catalogue.find("b", "test")[0], catalogue.find("z", "train")[0]
    assert catalogue.exclusion(trained, "test") == f"A run would not score it: it is not in {scored} (evaluation)."
    assert catalogue.exclusion(scored_task, "train").startswith("A run would not train on it: it is not in ")
    assert catalogue.exclusion(catalogue.find("z", "test")[0], "test") is None


def test_an_unknown_task_is_told_with_the_nearest(configure, folder):
    catalogue = read_catalogue(configure().data)
    with pytest.raises(ConfigError) as error:
        catalogue.find("wade", "test")
    assert str(error.value) == (
        f"There is no task 'wade' in {folder} (training). The nearest: wide. Other tasks: --data.source, --data.split, "
        f"--data.validation_source."
    )
    with pytest.raises(ConfigError, match=r"\. Its ids are like a\. Other"):
        catalogue.find("00000000", "test")


def test_what_cannot_be_read_is_told_by_the_reader(configure, folder):
    (folder / "b.json").write_text('{"train": [{"input": [[11]], "output": [[1]]}], "test": []}')
    with pytest.raises(DataError, match=r"b\.json: task b, train pair 0, input, row 0, column 0 holds 11"):
        read_catalogue(configure().data)
