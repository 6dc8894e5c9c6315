"""A validation in the middle of a run, with the models as they are."""

from typing import NamedTuple

from arcdist.evaluation import AnswerBook, Answerer, score
from arcdist.training.session import Session


class Validated(NamedTuple):
    """What a validation gives."""

    scores: dict[str, float]
    """Means over the queries, as they are logged."""
    answers: AnswerBook
    """Of this process; it reads those of all."""


def validate(session: Session) -> Validated:
    """Score the models on all validation queries. All processes call it together.

    The averaged agent answers, where an average is kept. Queries that stand in for none count nowhere.
    """
    models = session.models
    answerer = Answerer(
        read=session.engines.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )
    shown, steps = session.config.tracking.shown_queries, session.config.agent.max_steps
    book = AnswerBook(session.validation.ids, shown, steps, session.device)
    shares = (
        (queries, not share.is_padding)
        for batch in session.validation.loader(0, session.device)
        for queries, share in zip(batch.queries, batch.shares, strict=True)
    )
    with session.engines.autocast():
        return Validated(score(answerer, shares, book), book)
