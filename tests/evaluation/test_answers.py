"""From the agent's output to a graded answer, by hand, and the predictions of a validation."""

from dataclasses import replace

import pytest
import torch

from arcdist.data import OUTSIDE, QueryTargets
from arcdist.evaluation import Grades, Predictions, answer, canvas_target, grade, score
from arcdist.models import AgentOutput
from arcdist.rl import Answer

X = -1


def targets_of(*grids, size=None):
    """Targets on the smallest canvas that holds all of them; [] is an unknown one."""
    height = max([len(grid) for grid in grids if grid], default=1)
    width = max([len(grid[0]) for grid in grids if grid], default=1)
    canvas = torch.full((len(grids), height, width), X)
    sizes = []
    for row, grid in enumerate(grids):
        sizes.append((len(grid), len(grid[0])) if grid else (0, 0))
        if grid:
            canvas[row, : len(grid), : len(grid[0])] = torch.tensor(grid)
    size = torch.tensor(sizes)
    return QueryTargets(target=canvas, target_size=size, written=canvas, written_size=size)


def answers_of(grid, size):
    grid = torch.tensor(grid)
    return Answer(grid=grid, size=torch.tensor(size), reconstruction=torch.zeros(len(grid), 1, 1, dtype=torch.long))


def output_of(colors, area, sizes, *, num_colors=10):
    """An output that predicts `colors` [B][H][W], computed in `area`, and is sure of `sizes`."""
    colors = torch.tensor(colors)
    logits = torch.nn.functional.one_hot(colors, num_colors).float().log_softmax(-1)
    size_logits = torch.nn.functional.one_hot(torch.tensor(sizes) - 1, 30).float().mul(9.0).log_softmax(-1)
    return AgentOutput(
        forward_logits=logits[None],
        backward_logits=logits[None],
        reconstruction_logits=logits.roll(1, dims=-1),
        state_logits=torch.zeros(1, *colors.shape, num_colors),
        obs_probs=torch.eye(num_colors),
        size_logits=size_logits,
        area=torch.tensor(area, dtype=torch.bool),
        halting=None,
    )


@pytest.fixture
def two_queries(make_query, collate):
    """A query with a working area of 2 x 2 and one of 1 x 3, on a canvas of 2 x 3."""
    first = make_query("a", [[1, 1]], [[4, 5], [6, 7]], [([[1, 2]], [[3, 4], [5, 6]])])
    second = make_query("b", [[1]], [[8, 9, 8, 9]], [([[1]], [[3, 4, 5]])])
    return collate(first, second)


def test_an_answer_by_hand(two_queries):
    output = output_of(
        [[[4, 5, 9], [6, 7, 9]], [[8, 9, 1], [9, 9, 9]]],
        [[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]],
        [(2, 2), (1, 3)],
    )
    given_answer = answer(output, two_queries.inputs, two_queries.targets)
    # Colours beyond the working area are no answer; the targets' canvas is 2 x 4.
    assert given_answer.grid.tolist() == [[[4, 5, X, X], [6, 7, X, X]], [[8, 9, 1, X], [X] * 4]]
    assert given_answer.size.tolist() == [[2, 2], [1, 3]]
    assert given_answer.reconstruction[0].tolist() == [[5, 6, 0], [7, 8, 0]]


def test_other_logits_replace_the_agent_s(two_queries):
    output = output_of([[[0] * 3] * 2] * 2, [[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]], [(2, 2), (1, 3)])
    logits = torch.zeros(2, 2, 3, 10)
    logits[..., 7] = 1.0
    weighed = answer(output, two_queries.inputs, two_queries.targets, logits)
    assert weighed.grid[0].tolist() == [[7, 7, X, X], [7, 7, X, X]]
    assert weighed.size.tolist() == [[2, 2], [1, 3]]


def test_a_predicted_size_stays_in_the_working_area(two_queries):
    area = [[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]]
    output = output_of([[[0] * 3] * 2] * 2, area, [(30, 1), (1, 9)])
    logits = output.size_logits.clone()
    logits[0, 0, 1] = -1.0  # the next likeliest height: 2
    logits[1, 1, 2] = -1.0  # width 3
    sizes = answer(replace(output, size_logits=logits), two_queries.inputs, two_queries.targets).size
    assert sizes.tolist() == [[2, 1], [1, 3]]


def test_targets_on_the_agent_s_canvas(two_queries):
    output = output_of([[[0] * 3] * 2] * 2, [[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]], [(1, 1), (1, 1)])
    target, mask = canvas_target(two_queries.targets, output)
    assert target.tolist() == [[[4, 5, X], [6, 7, X]], [[8, 9, 8], [X, X, X]]]
    assert mask.tolist() == [[[True, True, False]] * 2, [[True] * 3, [False] * 3]]


def test_cells_that_were_not_computed_are_masked(make_query, collate):
    # The working area of the first is 1 x 1, its target 1 x 2; the second makes the canvas larger.
    first = make_query("a", [[1]], [[4, 5]], [([[1]], [[2]])])
    second = make_query("b", [[1, 1, 1]], [[1, 2, 3]], [([[1]], [[2]])])
    batch = collate(first, second)
    output = output_of([[[4, 5, 0]], [[1, 2, 3]]], [[[1, 0, 0]], [[1, 1, 1]]], [(1, 1), (1, 3)])
    target, mask = canvas_target(batch.targets, output)
    assert target.tolist() == [[[4, 5, X]], [[1, 2, 3]]]
    assert mask.tolist() == [[[True, False, False]], [[True, True, True]]]
    grades = grade(answer(output, batch.inputs, batch.targets), batch.targets)
    assert grades.exact.tolist() == [False, True]
    assert grades.cell.tolist() == [0.5, 1.0]


def test_grades_by_hand():
    targets = targets_of([[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 4]], [[5]], [[5]])
    answers = answers_of(
        [
            [[1, 2], [3, 4]],  # right
            [[1, 2], [3, 0]],  # a wrong cell
            [[1, 2], [3, 4]],  # a wrong size
            [[5, 7], [7, 7]],  # right: what is beyond the target's size does not count
            [[X, 7], [7, 7]],  # nothing where the target is
        ],
        [(2, 2), (2, 2), (2, 1), (1, 1), (1, 1)],
    )
    grades = grade(answers, targets)
    assert grades.exact.tolist() == [True, False, False, True, False]
    assert grades.size.tolist() == [True, True, False, True, True]
    assert grades.cell.tolist() == [1.0, 0.75, 1.0, 1.0, 0.0]


def test_each_side_of_the_size_counts():
    targets = targets_of(*[[[1, 1, 1]]] * 3)
    grades = grade(answers_of([[[1, 1, 1]]] * 3, [(1, 3), (3, 1), (1, 2)]), targets)
    assert grades.size.tolist() == [True, False, False]
    assert grades.exact.tolist() == [True, False, False]


def test_an_unknown_target_has_no_grade():
    grades = grade(answers_of([[[1]], [[1]]], [(1, 1), (1, 1)]), targets_of([], [[1]]))
    assert grades.exact.tolist() == [False, True]
    assert grades.size.tolist() == [False, True]
    assert grades.cell.tolist() == [0.0, 1.0]


def test_a_target_beyond_the_canvas_is_never_exact(make_query, collate):
    for height, width in ((1, 2), (2, 1), (3, 3)):
        batch = collate(make_query("a", [[1]], [[4] * width] * height, [([[1]], [[2]])]))
        for size in range(1, 31):
            output = output_of([[[4]]], [[[1]]], [(min(size, height), min(size, width))])
            grades = grade(answer(output, batch.inputs, batch.targets), batch.targets)
            assert not grades.exact.item()
            assert grades.cell.item() == pytest.approx(1 / (height * width))


CPU = torch.device("cpu")


@pytest.fixture
def queries(make_query):
    pairs = [([[1, 2], [3, 4]], [[2, 1], [4, 3]])]
    return [
        make_query("a", [[1, 2], [3, 4]], [[0, 0], [0, 0]], pairs),
        make_query("b", [[7]], [[0, 0, 0]], pairs),
        make_query("c", [[5, 5, 5], [6, 6, 6]], [[1], [2]], pairs),
    ]


@pytest.fixture
def read(predictor, collate, queries):
    """The predictions of all queries, in batches of so many, beside their scores."""

    def fill(size, shown=3):
        names = [query.id for query in queries]
        predictions = Predictions(names, shown, predictor.agent.max_steps, CPU)
        batches = [collate(*queries[start : start + size]) for start in range(0, len(queries), size)]
        scores = score(predictor, [(batch, True) for batch in batches], predictions)
        return predictions.read(), scores

    return fill


def test_predictions_say_of_each_query_what_the_scores_say_of_all(read):
    noted, scores = read(2)
    assert [note.id for note in noted] == ["a:test:0", "b:test:0", "c:test:0"]
    assert sum(note.exact for note in noted) / 3 == pytest.approx(scores["val/exact"])
    assert sum(note.cell for note in noted) / 3 == pytest.approx(scores["val/cell"])
    assert all(0 < note.confidence < 1 for note in noted)


def test_batches_make_no_difference(read):
    together, apart = read(3)[0], read(1)[0]
    for note, other in zip(together, apart, strict=True):
        assert note.pictures == other.pictures
        assert (note.exact, note.cell) == (other.exact, other.cell)
        assert note.confidence == pytest.approx(other.confidence, rel=1e-5)


def test_grids_are_the_query_s_and_answers_have_one_size(read, queries, predictor):
    for note, query in zip(read(2)[0], queries, strict=True):
        first, target, *answers = note.pictures
        assert first == query.input.tolist()
        assert target == query.target.tolist()
        assert len(answers) == predictor.agent.max_steps + 1
        assert len({(len(grid), len(grid[0])) for grid in answers}) == 1
        assert all(0 <= color <= 9 for grid in answers for row in grid for color in row)


def test_the_same_queries_are_shown_whatever_their_order(predictor, collate, queries):
    shown = []
    for order in (queries, queries[::-1]):
        predictions = Predictions([query.id for query in order], 2, predictor.agent.max_steps, CPU)
        score(predictor, [(collate(*order), True)], predictions)
        shown.append([note.id for note in predictions.read() if note.pictures])
    assert len(shown[0]) == 2
    assert shown[0] == shown[1]


def test_padding_and_queries_without_a_target_are_left_out(predictor, collate, queries):
    predictions = Predictions([query.id for query in queries], 3, predictor.agent.max_steps, CPU)
    batch = collate(*queries[:2])
    batch.targets.target[1] = OUTSIDE
    score(predictor, [(batch, True), (collate(queries[2]), False)], predictions)
    (note,) = predictions.read()
    assert note.id == "a:test:0"


def test_confidence_is_the_geometric_mean_over_the_answer_s_cells(predictor, collate, queries):
    """Probabilities 0.9 and 0.4 inside an answer of one row and two columns; what is beyond it does not count."""
    batch = collate(queries[0])
    inputs = batch.inputs
    prompt, _ = predictor.qwen(inputs.tokens, inputs.token_mask, inputs.features)
    output = predictor.agent(inputs, prompt)
    logits = torch.full((1, 2, 2, 10), 0.1 / 9).log()
    logits[0, 0, 0, 3] = torch.tensor(0.9).log()
    logits[0, 0, 1] = torch.tensor(0.6 / 9).log()
    logits[0, 0, 1, 5] = torch.tensor(0.4).log()

    right = torch.tensor([True])
    predictions = Predictions([queries[0].id], 1, predictor.agent.max_steps, CPU)
    size = torch.tensor([[1, 2]])
    with torch.no_grad():
        predictions.add(batch, right, Grades(exact=right, size=right, cell=torch.ones(1)), output, size, logits)
    (note,) = predictions.read()
    assert note.confidence == pytest.approx((0.9 * 0.4) ** 0.5, rel=1e-5)
    assert note.pictures[-1] == [[3, 5]]
