"""Candidates: views that are taken back exactly, proposers, and nothing that depends on an answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arcdist.data import Collator, Pair, Query, embedded_tokenizer
from arcdist.evaluation import answer
from arcdist.evaluation.adapt import Adapting, adapted
from arcdist.evaluation.predict import Candidate, Proposing, propose, views
from arcdist.evaluation.vote import vote

CPU = torch.device("cpu")
EVERYTHING = Proposing(views=9, draws=3, steps=True, consensus=True, memory=True)


def grid(rows):
    return np.array(rows, dtype=np.uint8)


PAIRS = [([[1, 2], [3, 4]], [[2, 1], [4, 3]]), ([[5, 0]], [[0, 5]]), ([[7], [8]], [[7], [8]])]


def pairs(numbers):
    return tuple(Pair(grid(PAIRS[number][0]), grid(PAIRS[number][1])) for number in numbers)


def query(name="a", kind="test", target=((9,),), context=(0, 1, 2), asked=((1, 0, 2), (0, 3, 0))):
    return Query(f"{name}:{kind}:0", name, pairs(context), grid(asked), None if target is None else grid(target))


def demonstrations(name="a"):
    return [
        Query(f"{name}:train:{own}", name, pairs({0, 1, 2} - {own}), grid(PAIRS[own][0]), grid(PAIRS[own][1]))
        for own in range(3)
    ]


@pytest.fixture(params=[True, False], ids=["Qwen reads each view", "Qwen reads the query's own form"])
def collator(request):
    return Collator(embedded_tokenizer(), task_rows={"a": 0, "b": 1}, reads_views=request.param)


@pytest.fixture
def evaluated(predictor):
    for module in (predictor.qwen, predictor.agent, predictor.solver, predictor.refiner):
        module.eval()
    return predictor


def test_the_first_views_are_the_symmetries_and_the_ninth_has_other_colours():
    seen = views(17, "a")
    assert [view.dihedral for view in seen] == [*range(8), *range(8), 0]
    unchanged = [view.colors.tolist() == list(range(10)) for view in seen]
    assert unchanged == [True] * 8 + [False] * 9
    assert len({tuple(view.colors.tolist()) for view in seen}) == 10
    assert all(view.colors[0] == 0 for view in seen)
    again, other = views(17, "a"), views(17, "b")
    assert [view.colors.tolist() for view in again] == [view.colors.tolist() for view in seen]
    assert [view.colors.tolist() for view in other] != [view.colors.tolist() for view in seen]


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9)),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_every_view_is_taken_back_exactly(rows, count, seed):
    for view in views(count, "a", seed):
        assert view.invert(view.apply(rows)).tolist() == rows.tolist()


@pytest.fixture
def echo(evaluated, monkeypatch):
    """Models whose agent answers with its input: what is taken back wrongly is another grid."""
    planned = evaluated.agent.plan_until_stopped

    def plan(inputs, prompt, context=None):
        colors = torch.nn.functional.one_hot(inputs.query.clamp_min(0), 10).float()
        sides = torch.nn.functional.one_hot(inputs.query_size - 1, 30).float()
        made = planned(inputs, prompt, context)
        logits = (colors * 20).log_softmax(-1).expand_as(made.forward_logits)
        return replace(made, forward_logits=logits, size_logits=(sides * 20).log_softmax(-1))

    monkeypatch.setattr(evaluated.agent, "plan_until_stopped", plan)
    # The memory is empty and must not be trusted.
    torch.nn.init.constant_(evaluated.solver.confidence[-1].bias, -60.0)
    return evaluated


def test_answers_are_given_as_the_puzzle_is_seen_unchanged(echo, collator):
    asked = query()
    (candidates,) = propose(echo, collator, [asked], [], Proposing(views=20, steps=True), CPU)
    assert {candidate.grid for candidate in candidates} == {tuple(map(tuple, asked.input.tolist()))}
    assert [(c.origin, c.view) for c in candidates] == [(o, v) for v in range(20) for o in ("agent", "steps")]
    # Two sides and six cells, each all but certain.
    assert candidates[0].log_prob == pytest.approx(-2 * np.log1p(29 * np.exp(-20)) - 6 * np.log1p(9e-9), abs=1e-4)


def test_the_first_candidate_is_the_answer_that_validation_scores(evaluated, collator, make_query):
    asked = [query(), query("b", context=(1,), asked=((5, 5),))]
    for each in asked:
        batch = collator([each])
        with torch.no_grad():
            response = evaluated.respond(batch)
        given = answer(response.plan, batch.inputs, batch.targets, response.logits)
        height, width = given.size[0].tolist()
        colors = response.logits[0].argmax(-1)[:height, :width]
        (candidates,) = propose(evaluated, collator, [each], [], Proposing(), CPU)
        assert [(c.origin, c.view, c.grid) for c in candidates] == [("agent", 0, tuple(map(tuple, colors.tolist())))]


def test_every_part_proposes(evaluated, collator):
    found = propose(evaluated, collator, [query(), query(asked=((4,),))], demonstrations(), EVERYTHING, CPU)
    for candidates in found:
        for view in range(9):
            of_one_view = (each for each in candidates if each.origin not in ("consensus", "agent_score"))
            origins = [candidate.origin for candidate in of_one_view if candidate.view == view]
            # Two planning steps, of which the last is the agent's; three draws, of which one is the best.
            expected = ["agent", "steps", "memory", "refiner", "refiner", "demonstrations"]
            assert sorted(origins) == sorted(expected)


def test_all_views_propose_a_grid_together_and_score_those_of_all(evaluated, collator):
    seen_before = [[Candidate(((1, 2), (3, 4)), "unadapted", 3, -1.0), Candidate(((0,) * 30,) * 30, "memory", 0, -1.0)]]
    settings = Proposing(views=9, steps=True, consensus=True)
    (candidates,) = propose(evaluated, collator, [query()], [], settings, CPU, seen_before)
    assert [each for each in candidates if each.origin in ("unadapted", "memory")] == seen_before[0][::-1]
    (agreed,) = (each for each in candidates if each.origin == "consensus")
    scores = {each.grid: each.log_prob for each in candidates if each.origin == "agent_score"}
    assert scores[agreed.grid] == pytest.approx(9 * agreed.log_prob)
    # Every grid that fits has one.
    assert scores.keys() == {each.grid for each in candidates} - {((0,) * 30,) * 30}
    same_size = [grid for grid in scores if np.shape(grid) == np.shape(agreed.grid)]
    assert max(scores[grid] for grid in same_size) == scores[agreed.grid]
    # Of one view it is the agent's own answer.
    (candidates,) = propose(evaluated, collator, [query()], [], replace(settings, views=1, steps=False), CPU)
    assert [(each.origin, each.grid) for each in candidates] == [
        (origin, candidates[0].grid) for origin in ("agent", "consensus", "agent_score")
    ]
    assert candidates[1].log_prob == pytest.approx(candidates[0].log_prob, abs=1e-4)


def test_without_demonstrations_no_draw_is_the_best(evaluated, collator):
    (candidates,) = propose(evaluated, collator, [query()], [], Proposing(draws=2), CPU)
    assert [candidate.origin for candidate in candidates] == ["agent", "refiner", "refiner"]


def test_batches_change_no_candidate(evaluated, collator):
    asked = [query(), query(asked=((4, 4),))]
    whole = propose(evaluated, collator, asked, demonstrations(), EVERYTHING, CPU)
    cut = propose(evaluated, collator, asked, demonstrations(), replace(EVERYTHING, batch_size=4), CPU)
    assert [[(c.grid, c.origin, c.view) for c in each] for each in cut] == [
        [(c.grid, c.origin, c.view) for c in each] for each in whole
    ]


@pytest.mark.parametrize("part", ["agent", "qwen", "both"])
def test_an_answer_changes_nothing_that_is_proposed(evaluated, collator, part):
    """To the last bit, whatever the answer is, or if there is none, with test-time training."""
    settings = Adapting(steps=3, lr=1e-2, part=part, batch_size=4, colors=True)

    def proposed(target):
        shown = demonstrations()
        with adapted(evaluated, collator, "a", shown, settings, CPU) as (own, own_collator):
            return propose(own, own_collator, [query(target=target)], shown, EVERYTHING, CPU)

    expected = proposed(((9,),))
    for target in (None, ((1, 2, 3), (4, 5, 6)), ((0,) * 30,) * 30):
        assert proposed(target) == expected
    assert vote(expected[0], {"agent": 1.0})


def test_qwen_reads_once_what_the_agent_sees_from_several_sides(evaluated, collator, monkeypatch):
    read, texts = evaluated.qwen.forward, []

    def noting(tokens, *others):
        texts.extend(tokens.tolist())
        return read(tokens, *others)

    monkeypatch.setattr(evaluated.qwen, "forward", noting)
    propose(evaluated, collator, [query()], [], Proposing(views=8), CPU)
    own = collator([query()]).inputs.tokens[0].tolist()
    if collator.reads_views:
        assert len({tuple(text) for text in texts}) == len(texts) == 8
    else:
        assert texts == [own]
