"""The book of answers against the scores of the same answers, and against grids made by hand."""

import pytest
import torch

from arcdist.data import OUTSIDE
from arcdist.evaluation import AnswerBook, Grades, score

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
def read(answerer, collate, queries):
    """A book that the answerer has filled, in batches of so many queries, beside its scores."""

    def fill(size, shown=3):
        names = [query.id for query in queries]
        book = AnswerBook(names, shown, answerer.agent.max_steps, CPU)
        batches = [collate(*queries[start : start + size]) for start in range(0, len(queries), size)]
        scores = score(answerer, [(batch, True) for batch in batches], book)
        return book.read(), scores

    return fill


def test_a_book_says_of_each_query_what_the_scores_say_of_all(read):
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


def test_grids_are_the_query_s_and_answers_have_one_size(read, queries, answerer):
    for note, query in zip(read(2)[0], queries, strict=True):
        first, target, *answers = note.pictures
        assert first == query.input.tolist()
        assert target == query.target.tolist()
        assert len(answers) == answerer.agent.max_steps + 1
        assert len({(len(grid), len(grid[0])) for grid in answers}) == 1
        assert all(0 <= color <= 9 for grid in answers for row in grid for color in row)


def test_the_same_queries_are_shown_whatever_their_order(answerer, collate, queries):
    shown = []
    for order in (queries, queries[::-1]):
        book = AnswerBook([query.id for query in order], 2, answerer.agent.max_steps, CPU)
        score(answerer, [(collate(*order), True)], book)
        shown.append([note.id for note in book.read() if note.pictures])
    assert len(shown[0]) == 2
    assert shown[0] == shown[1]


def test_padding_and_queries_without_a_target_are_not_noted(answerer, collate, queries):
    book = AnswerBook([query.id for query in queries], 3, answerer.agent.max_steps, CPU)
    batch = collate(*queries[:2])
    batch.targets.target[1] = OUTSIDE
    score(answerer, [(batch, True), (collate(queries[2]), False)], book)
    (note,) = book.read()
    assert note.id == "a:test:0"


def test_confidence_is_the_geometric_mean_over_the_answer_s_cells(answerer, collate, queries):
    """Probabilities 0.9 and 0.4 inside an answer of one row and two columns; what is beyond it does not count."""
    batch = collate(queries[0])
    inputs = batch.inputs
    prompt, _ = answerer.qwen(inputs.tokens, inputs.token_mask, inputs.features)
    output = answerer.agent(inputs, prompt)
    logits = torch.full((1, 2, 2, 10), 0.1 / 9).log()
    logits[0, 0, 0, 3] = torch.tensor(0.9).log()
    logits[0, 0, 1] = torch.tensor(0.6 / 9).log()
    logits[0, 0, 1, 5] = torch.tensor(0.4).log()

    right = torch.tensor([True])
    book = AnswerBook([queries[0].id], 1, answerer.agent.max_steps, CPU)
    size = torch.tensor([[1, 2]])
    with torch.no_grad():
        book.note(batch, right, Grades(exact=right, size=right, cell=torch.ones(1)), output, size, logits)
    (note,) = book.read()
    assert note.confidence == pytest.approx((0.9 * 0.4) ** 0.5, rel=1e-5)
    assert note.pictures[-1] == [[3, 5]]
