"""Scores of a set of queries against a slow computation, one query at a time."""

from dataclasses import dataclass, replace

import pytest
import torch

from arcdist.data import Query, QueryBatch
from arcdist.evaluation import Predictor, score

NAMES = ["val/exact", "val/cell", "val/size", "val/accuracy_delta", "floor/copy_exact", "floor/copy_cell"]


@pytest.fixture
def questions(make_query):
    """Six queries of different sizes, with targets that nobody has to guess yet."""
    pairs = {
        "same": [([[1, 2], [3, 4]], [[2, 1], [4, 3]])],
        "wide": [([[1]], [[2, 3, 4]]), ([[5]], [[6, 7, 8]])],
        "tall": [([[1, 1, 1], [2, 2, 2]], [[3], [3], [3], [3]])],
    }
    return [
        make_query("a", [[1, 2], [3, 4]], [[0, 0], [0, 0]], pairs["same"]),
        make_query("b", [[7]], [[0, 0, 0]], pairs["wide"]),
        make_query("c", [[5, 5, 5], [6, 6, 6]], [[0], [0], [0], [0]], pairs["tall"]),
        make_query("d", [[8, 9], [9, 8]], [[0, 0], [0, 0]], pairs["same"]),
        make_query("e", [[4]], [[0, 0, 0]], pairs["wide"]),
        make_query("f", [[1, 0, 1], [0, 1, 0]], [[0], [0], [0], [0]], pairs["tall"]),
    ]


def counted(*batches: QueryBatch) -> list[tuple[QueryBatch, bool]]:
    """Batches of which none is padding."""
    return [(batch, True) for batch in batches]


def with_target(query: Query, rows: list[list[int]] | None) -> Query:
    target = None if rows is None else torch.tensor(rows, dtype=torch.uint8).numpy()
    return replace(query, target=target)


@dataclass(frozen=True)
class Said:
    """What the models say about one query: a colour for each cell of the working area, and a size."""

    cells: list[list[int]]
    size: tuple[int, int]

    @property
    def grid(self) -> list[list[int]]:
        height, width = self.size
        return [row[:width] for row in self.cells[:height]]

    def share_right(self, target: list[list[int]]) -> float:
        colors = {(r, c): color for r, row in enumerate(self.cells) for c, color in enumerate(row)}
        right = [colors.get((r, c)) == color for r, row in enumerate(target) for c, color in enumerate(row)]
        return sum(right) / len(right)


@torch.no_grad()
def ask(models: Predictor, query: Query, collate) -> tuple[Said, Said]:
    """What one query alone is answered with before and after refinement."""
    batch = collate(query)
    inputs = batch.inputs
    for module in (models.qwen, models.agent, models.solver):
        module.eval()
    prompt, control = models.qwen(inputs.tokens, inputs.token_mask, inputs.features)
    refined = models.refiner.refine_prompt(prompt, control, inputs.summary, deterministic=True).refined
    proposal = models.solver(prompt, inputs, batch.ids)
    trust = proposal.confidence_logit.sigmoid().item()
    both = []
    for each in (prompt, refined):
        output = models.agent(inputs, each)
        probs = (1 - trust) * output.final_logits[0].exp() + trust * proposal.candidate[0].exp()
        colors = probs.argmax(-1).tolist()
        height, width = (
            1 + int(output.size_logits[0, axis, : int(limit)].argmax())
            for axis, limit in enumerate(inputs.working_area[0])
        )
        both.append(Said(colors, (height, width)))
    return both[0], both[1]


def test_scores_by_a_slow_loop(predictor, questions, collate):
    firsts, finals = zip(*(ask(predictor, query, collate) for query in questions), strict=True)
    assert firsts != finals  # the refiner makes a difference

    spoilt = [row.copy() for row in finals[1].grid]
    spoilt[0][0] = (spoilt[0][0] + 1) % 10
    targets = [
        finals[0].grid,  # exact
        spoilt,  # one cell wrong
        [*finals[2].grid, finals[2].grid[0]],  # a row too few
        questions[3].input.tolist(),  # the query itself
        firsts[4].grid,  # what was said before refinement
        None,  # not known
    ]
    asked = [with_target(query, target) for query, target in zip(questions, targets, strict=True)]
    scores = score(predictor, counted(collate(*asked[:4]), collate(*asked[4:])))

    expected = dict.fromkeys(NAMES, 0.0)
    for query, target, first, final in zip(questions, targets, firsts, finals, strict=True):
        if target is None:
            continue
        copied = query.input.tolist()
        whole = Said(copied, query.input.shape)
        expected["val/exact"] += (final.grid == target) / 5
        expected["val/cell"] += final.share_right(target) / 5
        expected["val/size"] += (final.size == (len(target), len(target[0]))) / 5
        expected["val/accuracy_delta"] += (final.share_right(target) - first.share_right(target)) / 5
        expected["floor/copy_exact"] += (copied == target) / 5
        expected["floor/copy_cell"] += whole.share_right(target) / 5
    assert scores == pytest.approx(expected)
    assert list(scores) == NAMES
    assert scores["val/exact"] >= 0.2
    assert scores["val/size"] < 1
    assert scores["val/accuracy_delta"] != 0
    assert scores["floor/copy_exact"] >= 0.2


def test_the_copy_floor_by_hand(predictor, make_query, collate):
    context = [([[1, 2]], [[2, 1]])]
    copied = make_query("a", [[3, 4], [5, 6]], [[3, 4], [5, 6]], context)
    half = make_query("b", [[3, 4]], [[3, 0]], context)
    larger = make_query("c", [[3, 4]], [[3, 4], [3, 4]], context)  # the cells beyond the query are wrong
    smaller = make_query("d", [[3, 4]], [[3]], context)  # all cells right, but not the size
    unknown = make_query("e", [[3, 4]], None, context)
    scores = score(predictor, counted(collate(copied, half), collate(larger, smaller, unknown)))
    assert scores["floor/copy_exact"] == pytest.approx(1 / 4)
    assert scores["floor/copy_cell"] == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)


def test_batches_change_no_score(predictor, questions, collate):
    firsts, finals = zip(*(ask(predictor, query, collate) for query in questions), strict=True)
    asked = [with_target(query, each.grid) for query, each in zip(questions, (*firsts[:3], *finals[3:]), strict=True)]
    expected = score(predictor, counted(*(collate(query) for query in asked)))
    assert expected["val/exact"] >= 0.5
    for batches in ([asked], [asked[:1], asked[1:]], [asked[::-1]]):
        assert score(predictor, counted(*(collate(*batch) for batch in batches))) == pytest.approx(expected)


def test_without_known_targets_there_is_nothing_to_score(predictor, questions, collate):
    unknown = [with_target(query, None) for query in questions]
    assert score(predictor, counted(collate(*unknown))) == dict.fromkeys(NAMES, 0.0)


def test_a_batch_that_does_not_count_changes_no_score_and_is_answered_all_the_same(predictor, questions, collate):
    asked = [with_target(query, ask(predictor, query, collate)[1].grid) for query in questions]
    real = counted(collate(*asked[:2]), collate(*asked[2:4]))
    expected = score(predictor, real)
    assert expected["val/exact"] == 1.0
    wrong = with_target(asked[4], [[0]] if asked[4].target.size > 1 else [[0, 0]])
    read = []
    noting = replace(predictor, read=lambda *given: read.append(len(given[0])) or predictor.qwen(*given))
    padded = [(collate(wrong), False), *real, (collate(asked[5], wrong), False)]
    assert score(noting, padded) == expected
    # Other processes may need this one's part in the forward pass.
    assert read == [1, 2, 2, 2]
    assert score(predictor, counted(*(batch for batch, _ in padded)))["val/exact"] < 1.0
    assert score(predictor, [(collate(wrong), False)]) == dict.fromkeys(NAMES, 0.0)


def test_queries_are_read_by_way_of_the_engine(predictor, questions, collate):
    def other(*given):
        prompt, control = predictor.qwen(*given)
        return -prompt, control

    asked = [with_target(query, ask(predictor, query, collate)[1].grid) for query in questions]
    assert score(predictor, counted(collate(*asked)))["val/exact"] == 1.0
    assert score(replace(predictor, read=other), counted(collate(*asked)))["val/exact"] < 1.0


def test_the_solver_has_its_say(predictor, questions, collate):
    target = [[9, 9], [9, 8]]
    query = with_target(questions[0], target)
    batch = collate(query)
    assert score(predictor, counted(batch))["val/exact"] == 0.0
    predictor.agent.size_head.gates.bias.data[[0, 5]] = 50.0  # as large as the query
    with torch.no_grad():
        predictor.qwen.eval()
        prompt, _ = predictor.qwen(batch.inputs.tokens, batch.inputs.token_mask, batch.inputs.features)
        predictor.solver.memory.add(
            ids=["another:train:0"],
            features=prompt,
            queries=batch.inputs.query,
            outcomes=torch.tensor([target]),
            exact=torch.tensor([True]),
            step=0,
        )
        predictor.solver.confidence[-1].bias.fill_(50.0)
        predictor.solver.sharpness.fill_(100.0)
        predictor.solver.suggestion.bias.copy_(torch.tensor([50.0, -50.0]))
    scores = score(predictor, counted(batch))
    assert scores["val/exact"] == 1.0
    assert scores["val/accuracy_delta"] == 0.0  # it has the same say before and after refinement


@pytest.mark.parametrize("modes", [(True, True, True), (False, True, False), (True, False, True)])
def test_modes_are_put_back_and_dropout_is_off(predictor, questions, collate, modes):
    modules = (predictor.qwen, predictor.agent, predictor.solver)
    batches = [collate(with_target(query, ask(predictor, query, collate)[1].grid)) for query in questions]
    for module, mode in zip(modules, modes, strict=True):
        module.train(mode)
    scores = score(predictor, counted(*batches))
    assert scores["val/exact"] == 1.0  # dropout would have changed the prompts
    assert tuple(module.training for module in modules) == modes
    assert all(part.training is modes[0] for part in predictor.qwen.modules())


def test_scoring_leaves_no_gradient_and_changes_nothing(predictor, questions, collate):
    modules = (predictor.qwen, predictor.agent, predictor.solver, predictor.refiner)
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    random_state = torch.get_rng_state()
    score(predictor, counted(collate(*questions)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert len(predictor.solver.memory) == 0
    for module, state in zip(modules, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert all(parameter.grad is None for parameter in module.parameters())
