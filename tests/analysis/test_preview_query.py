"""What is shown is what the models are given: the same tensors, and no trace of the target."""

import subprocess
import sys
from functools import cache

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arcdist.analysis.preview_query import collate_query, exclusion, find_task, load_tokenizer
from arcdist.config import QwenConfig, load_config
from arcdist.data import (
    FEATURE_NAMES,
    Origin,
    Pair,
    Task,
    TaskSet,
    TaskSets,
    draw_augmentation,
    read_task_sets,
    working_area,
)
from arcdist.data.batch import stack_grids
from arcdist.data.features import pair_features
from arcdist.errors import ConfigError, PlatformError
from arcdist.rng import stream


def test_why_a_task_is_left_out(configure):
    data = configure("--data.max_tasks", "2").data
    sets = read_task_sets(data)
    reasons = {task.id: exclusion(sets, data, task, "train") for task in sets.training.tasks}
    assert reasons == {
        "a": None,
        "b": None,
        "c": "A run would not train on it: it is not among the first data.max_tasks = 2.",
        "wide": "A run would not train on it: its longest side is 12, data.max_side is 10.",
    }
    assert exclusion(sets, data, sets.training.tasks[3], "test").startswith("A run would not score it: its longest")


def test_a_query_is_looked_for_where_its_kind_comes_from(configure, tmp_path):
    scored = tmp_path / "scored"
    scored.mkdir()
    (scored / "a.json").write_text((tmp_path / "tasks" / "c.json").read_text())
    (scored / "z.json").write_text((tmp_path / "tasks" / "b.json").read_text())
    data = configure("--data.validation_source", str(scored)).data
    sets = read_task_sets(data)
    assert find_task(sets, "a", "train")[1] == f"{tmp_path / 'tasks'} (training)"
    assert find_task(sets, "a", "test")[1] == f"{scored} (evaluation)"
    trained, scored_task = find_task(sets, "b", "test")[0], find_task(sets, "z", "train")[0]
    assert exclusion(sets, data, trained, "test") == f"A run would not score it: it is not in {scored} (evaluation)."
    assert exclusion(sets, data, scored_task, "train").startswith("A run would not train on it: it is not in ")
    assert exclusion(sets, data, find_task(sets, "z", "test")[0], "test") is None


def test_demonstrations_that_join_the_training_are_trained_on(configure, tmp_path):
    joined = tmp_path / "joined"
    joined.mkdir()
    (joined / "z.json").write_text((tmp_path / "tasks" / "c.json").read_text())
    for flags in ((), ("--data.validation_source", str(joined), "--data.validation_split", "training")):
        data = configure("--data.also_demonstrations_of", str(joined), *flags).data
        sets = read_task_sets(data)
        task, origin = find_task(sets, "z", "train")
        assert (task.tests, origin) == ((), str(joined / "z.json"))
        assert exclusion(sets, data, task, "train") is None


def test_an_unknown_task_is_reported_with_the_nearest(configure, folder):
    sets = read_task_sets(configure().data)
    with pytest.raises(ConfigError) as error:
        find_task(sets, "wade", "test")
    assert str(error.value) == (
        f"There is no task 'wade' in {folder} (training). The nearest: wide. Other tasks: --data.source, --data.split, "
        f"--data.validation_source."
    )
    with pytest.raises(ConfigError, match=r"\. Its ids are like a\. Other"):
        find_task(sets, "00000000", "test")


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = r"not in the local cache, .* `hf download Qwen/Qwen2\.5-1\.5B config\.json .* --qwen\.model embedded:tiny"
    with pytest.raises(PlatformError, match=message):
        load_tokenizer(QwenConfig())


AUGMENTED = tuple(f"--data.augment.{name}=true" for name in ("dihedral", "colors", "order"))
PLAIN = tuple(flag.replace("true", "false") for flag in AUGMENTED)
TOKENIZER = load_tokenizer(QwenConfig(model="embedded:tiny"))


@cache
def configuration(flags):
    return load_config(("--data.max_context_pairs=10", "--agent.views_per_reading=1", *flags)).config


def grid(*rows):
    return np.array([list(map(int, row)) for row in rows], np.uint8)


TASK = Task(
    "t",
    (
        Pair(grid("12"), grid("21", "00")),
        Pair(grid("345"), grid("543")),
        Pair(grid("6", "0"), grid("07")),
    ),
    (Pair(grid("88"), grid("999", "999")), Pair(grid("1"), None)),
    "made up",
)


def ask(kind="test", index=0, epoch=0, task=TASK, flags=AUGMENTED, trained=()):
    tasks = TaskSet(origin=Origin("made up", "training"), tasks=trained, used=trained)
    sets = TaskSets(training=tasks, validation=tasks)
    config = configuration(tuple(flags))
    return collate_query(config, sets, task, kind=kind, index=index, epoch=epoch, tokenizer=TOKENIZER)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [grid.tolist() for grid in one.grids()] == [grid.tolist() for grid in other.grids()]


def test_a_test_query_is_given_as_it_is():
    collated = ask(trained=(Task("s", TASK.demonstrations, (), "made up"), TASK))
    assert (collated.name, collated.context_names) == ("test:0", ["train:0", "train:1", "train:2"])
    assert collated.augmentation is None
    assert_same(collated.given.context, TASK.demonstrations)
    assert collated.given.input.tolist() == [[8, 8]]
    assert collated.given.target is not None
    assert collated.given.target.tolist() == [[9, 9, 9], [9, 9, 9]]
    assert collated.text == "I12\nO21\n00\nI345\nO543\nI6\n0\nO07\nI88\nO"
    assert len(collated.ids) == len(collated.text) == 35
    assert "9" not in collated.text
    assert collated.working_area == working_area(TASK.demonstrations, TASK.tests[0].input) == (2, 4)
    assert collated.task_row == 1
    assert list(collated.features) == list(FEATURE_NAMES)
    alone = [
        pair_features(
            *(stack_grids([grid], 5, 5) for grid in pair.grids()), np.array([[grid.shape for grid in pair.grids()]])
        )
        for pair in TASK.demonstrations
    ]
    np.testing.assert_allclose(list(collated.features.values()), np.mean(alone, axis=0)[0], rtol=1e-6)
    assert collated.features["size_preserved"] == pytest.approx(1 / 3)
    assert collated.features["input_width"] == pytest.approx((2 + 3 + 1) / 3 / 30)


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_train_query_is_given_as_training_draws_it(index, epoch):
    collated = ask("train", index, epoch, flags=[*AUGMENTED, "--seed", "5"])
    context = [*TASK.demonstrations[:index], *TASK.demonstrations[index + 1 :]]
    rng = stream(5, "augment", epoch, f"t:train:{index}")
    augmentation = draw_augmentation(rng, dihedral=True, colors=True, order=True, num_pairs=2)
    assert collated.augmentation is not None
    assert collated.augmentation.order == augmentation.order
    changed = [
        Pair(augmentation.apply(context[place].input), augmentation.apply(context[place].output))
        for place in augmentation.order
    ]
    assert_same(collated.given.context, changed)
    assert collated.given.input.tolist() == augmentation.apply(TASK.demonstrations[index].input).tolist()
    assert collated.given.target.tolist() == augmentation.apply(TASK.demonstrations[index].output).tolist()
    assert_same(collated.query.context, context)
    assert collated.text.count("I") == 3
    assert collated.task_row == -1


def test_an_epoch_has_a_draw_of_its_own():
    texts = {ask("train", 0, epoch).text for epoch in range(4)}
    assert len(texts) > 1
    assert len({ask("train", 0, epoch, flags=PLAIN).text for epoch in range(4)}) == 1


def test_token_counts_are_those_of_all_queries_of_the_task():
    counts = ask("train", 1, flags=PLAIN).token_counts
    # 1 + height · (width + 1) a grid: demonstrations 4 + 7, 5 + 5, 5 + 4; tests 4 and 3; and the last mark.
    assert counts == {"train:0": 10 + 9 + 4 + 1, "train:1": 11 + 9 + 5 + 1, "train:2": 11 + 10 + 5 + 1,
                      "test:0": 30 + 4 + 1, "test:1": 30 + 3 + 1}  # fmt: skip


def test_an_unknown_output_is_none():
    collated = ask(index=1)
    assert collated.given.target is None
    assert collated.query.target is None


side = st.integers(1, 30)
some_grid = st.tuples(side, side).flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9)))


@settings(max_examples=10, deadline=None)  # Each example writes queries into the cache.
@drawn(some_grid, some_grid, st.sampled_from(["train", "test"]))
def test_another_target_changes_nothing_that_is_given(one, other, kind):
    def seen(target):
        pair = Pair(grid("12"), target)
        task = Task("u", (pair, TASK.demonstrations[1]) if kind == "train" else TASK.demonstrations, (pair,), "made up")
        collated = ask(kind, task=task)
        context = [grid.tolist() for pair in collated.given.context for grid in pair.grids()]
        return collated.text, collated.features, collated.working_area, collated.given.input.tolist(), context

    assert seen(one) == seen(other)


@pytest.mark.parametrize("most_pairs", [1, 2, 10])
def test_a_session_gives_its_models_the_same(build_tiny, tiny_flags, most_pairs):
    flags = (*AUGMENTED, f"--data.max_context_pairs={most_pairs}")
    session = build_tiny(*flags)
    config = configuration((*tiny_flags, *flags))
    sets = read_task_sets(config.data)
    tasks = {task.id: task for task in sets.training.used}
    for kind, queries in (("train", session.training), ("test", session.validation)):
        every, epoch = list(range(len(queries.queries))), 2 if kind == "train" else 0
        (batch,) = queries.load([every], epoch=epoch, device=torch.device("cpu"))
        (of_session,) = batch.queries
        for row, name in enumerate(of_session.ids):
            task_id, _, index = name.split(":")
            collated = collate_query(
                config, sets, tasks[task_id], kind=kind, index=int(index), epoch=2, tokenizer=TOKENIZER
            )
            inputs = of_session.inputs
            assert collated.ids.tolist() == inputs.tokens[row][inputs.token_mask[row]].tolist()
            assert list(collated.features.values()) == inputs.features[row].tolist()
            assert collated.working_area == tuple(inputs.working_area[row].tolist())
            assert collated.task_row == inputs.task_index[row]


@pytest.mark.parametrize(
    ("task", "kind", "index", "message"),
    [
        (TASK, "train", 3, "Task t has no query train:3: choose --query train:0, train:1, train:2, test:0 or test:1."),
        (
            Task("u", TASK.demonstrations[:1], TASK.tests[:1], ""),
            "train",
            0,
            "choose --query test:0.",
        ),
        (Task("v", TASK.demonstrations[:1], (), ""), "test", 0, "it has one demonstration and no test pair."),
    ],
)
def test_a_query_that_is_not_there(task, kind, index, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        ask(kind, index, task=task)


def test_a_preview_does_not_wait_for_the_models():
    code = "import sys, arcdist.analysis.preview; print({'transformers', 'arcdist.models'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
