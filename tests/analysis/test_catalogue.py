"""A folder counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.analysis.catalogue import histogram, read_catalogue, survey
from arcdist.data import LeakReport
from arcdist.errors import ConfigError, DataError


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


def test_a_folder_is_counted(configure, folder):
    overview = survey(read_catalogue(configure().data))
    ((origin, found),) = overview.sources.items()
    assert origin == f"{folder} (training)"
    assert (found.tasks, found.too_large, found.too_many) == (3, 1, 0)
    assert (found.demonstrations, found.single, found.tests, found.unknown) == (5, 1, 3, 1)
    assert found.same_size == 1
    assert sorted(found.cells.tolist()) == [1] * 5 + [2] * 6 + [3] * 2 + [4] * 2
    # 1 × 2 six times; 1 × 1 five times; 2 × 2 twice; 1 × 3 twice.
    assert sorted(found.sides.tolist()) == [1] * (6 + 10 + 2) + [2] * (6 + 4) + [3] * 2
    assert found.color_cells.tolist() == [2, 6, 2, 2, 5, 2, 2, 5, 1, 4]
    assert found.color_tasks.tolist() == [1, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(found.color_shares, np.array([2, 6, 2, 2, 5, 2, 2, 5, 1, 4]) / 31)


def test_queries_are_counted_with_their_tokens(configure):
    overview = survey(read_catalogue(configure().data))
    assert dict(zip(overview.training.ids, overview.training.lengths.tolist(), strict=True)) == {
        "a:train:0": 13, "a:train:1": 13, "b:train:0": 14, "b:train:1": 14,
    }  # fmt: skip
    assert dict(zip(overview.validation.ids, overview.validation.lengths.tolist(), strict=True)) == {
        "a:test:0": 21, "b:test:0": 24, "c:test:0": 14,
    }  # fmt: skip
    assert overview.training.longest == ("b:train:0", 14)
    assert overview.validation.longest == ("b:test:0", 24)
    assert overview.scored == 2


def test_max_tasks_leaves_out_what_comes_after(configure):
    (found,) = survey(read_catalogue(configure("--data.max_tasks", "1").data)).sources.values()
    assert (found.tasks, found.too_large, found.too_many) == (1, 1, 2)


def test_the_leak_guard_speaks(configure, folder, tmp_path):
    scored = tmp_path / "scored"
    scored.mkdir()
    (scored / "renamed.json").write_text((folder / "a.json").read_text())
    flags = ("--data.validation_source", str(scored))
    refused = survey(read_catalogue(configure(*flags).data))
    assert isinstance(refused.leaks, DataError)
    assert "(0 by id, 1 by content; renamed)" in str(refused.leaks)
    assert list(refused.sources) == [f"{folder} (training)", f"{scored} (evaluation)"]
    accepted = survey(read_catalogue(configure(*flags, "--data.allow_overlap", str(scored)).data))
    assert isinstance(accepted.leaks, LeakReport)
    assert accepted.leaks.shared_contents == 1
    assert survey(read_catalogue(configure().data)).leaks == LeakReport(
        shared_ids=0, shared_contents=0, examples=(), repeated_test_pairs=0
    )


def test_bins_have_round_edges():
    counted = histogram([np.array([0, 9, 10, 99]), np.array([50])], most_bins=10)
    assert counted.width == 10
    assert counted.counts == ((2, 1, 0, 0, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 1, 0, 0, 0, 0))
    assert histogram([np.array([100])], most_bins=10).width == 20


samples = st.lists(st.integers(1, 9000), min_size=1).map(np.array)


@given(samples, samples)
def test_every_sample_is_counted_once(one, other):
    counted = histogram([one, other])
    assert [sum(counts) for counts in counted.counts] == [len(one), len(other)]
    bins = {len(counts) for counts in counted.counts}
    assert bins == {max(one.max(), other.max()) // counted.width + 1}
    assert bins.pop() <= 20


@pytest.mark.parametrize("kind", ["train", "test"])
def test_what_asks_nothing_is_told_as_by_a_run(configure, folder, kind):
    for file in folder.glob("*.json"):
        file.unlink()
    single = '{"train": [{"input": [[1]], "output": [[2]]}TWICE], "test": []}'
    more = ', {"input": [[3]], "output": [[4]]}' if kind == "test" else ""
    (folder / "a.json").write_text(single.replace("TWICE", more))
    with pytest.raises(DataError, match=f"has a {kind} query"):
        survey(read_catalogue(configure().data))
