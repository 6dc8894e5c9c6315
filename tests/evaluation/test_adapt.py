"""Test-time training: what it learns, and that it leaves no trace."""

import copy

import numpy as np
import pytest
import torch

from arcdist.data import Collator, Pair, Query, embedded_tokenizer
from arcdist.evaluation.adapt import Adapting, adapted

CPU = torch.device("cpu")


def made(name, kind, context, asked):
    def pair(number):
        grid = np.array([[number, 0], [0, number]], dtype=np.uint8)
        return Pair(grid, grid[::-1].copy())

    own = pair(asked)
    return Query(f"{name}:{kind}:{asked}", name, tuple(map(pair, context)), own.input, own.output)


def demonstrations(name="a"):
    return [made(name, "train", {1, 2, 3} - {asked}, asked) for asked in (1, 2, 3)]


DEMONSTRATIONS = demonstrations()


@pytest.fixture(params=[True, False], ids=["Qwen reads each view", "Qwen reads the query's own form"])
def collator(request):
    return Collator(embedded_tokenizer(), task_rows={"a": 0, "b": 1}, reads_views=request.param)


@pytest.fixture
def evaluated(predictor):
    for module in (predictor.qwen, predictor.agent, predictor.solver, predictor.refiner):
        module.eval()
    return predictor


def state(models):
    return {
        f"{name}.{key}": value.clone()
        for name in ("qwen", "agent", "solver", "refiner")
        for key, value in getattr(models, name).state_dict().items()
    }


@pytest.mark.parametrize("part", ["agent", "qwen", "both"])
def test_it_trains_what_it_is_told_to_and_leaves_no_trace(evaluated, collator, part):
    before = state(evaluated)
    settings = Adapting(steps=2, lr=1e-2, part=part, batch_size=4)
    with adapted(evaluated, collator, "a", DEMONSTRATIONS, settings, CPU) as (own, _):
        during = state(own)
    kept = [name for name in before if not name.startswith("agent.task_vectors")]  # it has one of its own
    changed = {name.partition(".")[0] for name in kept if not torch.equal(before[name], during[name])}
    assert changed == {"agent": {"agent"}, "qwen": {"qwen"}, "both": {"agent", "qwen"}}[part]
    assert all(torch.equal(value, before[name]) for name, value in state(evaluated).items())
    assert all(parameter.grad is None for parameter in evaluated.qwen.parameters())
    assert not any(module.training for module in (evaluated.agent, own.agent, evaluated.qwen))


def test_an_error_inside_leaves_no_trace_either(evaluated, collator):
    before = state(evaluated)
    with (
        pytest.raises(RuntimeError, match="inside"),
        adapted(evaluated, collator, "a", DEMONSTRATIONS, Adapting(steps=1, lr=0.1, part="both"), CPU),
    ):
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in state(evaluated).items())


@pytest.mark.parametrize(("task_id", "row"), [("a", 1), ("b", 2), ("new", 0)])
def test_the_task_has_a_vector_of_its_own(evaluated, collator, task_id, row):
    shown = demonstrations(task_id)
    with adapted(evaluated, collator, task_id, shown, Adapting(steps=1, lr=1e-30), CPU) as (own, rows):
        assert rows.task_rows == {task_id: 0}
        vectors = own.agent.task_vectors.weight
        assert vectors.shape == (2, evaluated.agent.task_vectors.weight.shape[1])
        assert torch.allclose(vectors[1], evaluated.agent.task_vectors.weight[row], atol=1e-20)
        assert not vectors[0].any()
    with adapted(evaluated, collator, task_id, shown, Adapting(steps=2, lr=1e-2), CPU) as (own, _):
        assert not torch.equal(own.agent.task_vectors.weight[1], evaluated.agent.task_vectors.weight[row])
        assert not own.agent.task_vectors.weight[0].any()


@pytest.mark.parametrize(("shown", "steps"), [([], 5), (DEMONSTRATIONS, 0)])
def test_without_steps_or_demonstrations_the_models_are_as_they_were(evaluated, collator, shown, steps):
    with adapted(evaluated, collator, "a", shown, Adapting(steps=steps, lr=1.0), CPU) as (own, rows):
        assert own is evaluated
        assert rows is collator


def test_the_demonstrations_are_learned(evaluated, collator):
    """Twenty steps on three pairs of mirrored squares: the loss on them, unaugmented, falls by more than half."""

    def loss(models, rows):
        batch = rows(DEMONSTRATIONS)
        with torch.no_grad():
            logits = models.respond(batch).plan.final_logits
        return -logits.gather(-1, batch.targets.target[..., None]).mean().item()

    first = loss(evaluated, collator)
    settings = Adapting(steps=20, lr=1e-2, batch_size=6, dihedral=False)
    with adapted(evaluated, collator, "a", DEMONSTRATIONS, settings, CPU) as (own, rows):
        assert loss(own, rows) < 0.5 * first
    assert loss(evaluated, collator) == first


def test_what_is_learned_depends_on_nothing_that_was_drawn_before(evaluated, collator):
    settings = Adapting(steps=2, lr=1e-2, batch_size=4, colors=True)
    learned = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with adapted(evaluated, collator, "a", DEMONSTRATIONS, settings, CPU) as (own, _):
            learned.append(copy.deepcopy(own.agent.state_dict()))
    assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())
