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


def answerer_of(session: Session) -> Answerer:
    """What answers with a run's models; the averaged agent, where an average is kept."""
    models = session.models
    return Answerer(
        read=session.engines.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )


def validate(session: Session) -> Validated:
    """Score the models on all validation queries; those that stand in for none count nowhere.

    All processes call it together.
    """
    shown, steps = session.config.tracking.shown_queries, session.config.agent.max_steps
    book = AnswerBook(session.validation.ids, shown, steps, session.device)
    shares = (
        (queries, not share.is_padding)
        for batch in session.validation.loader(0, session.device)
        for queries, share in zip(batch.queries, batch.shares, strict=True)
    )
    with session.engines.autocast():
        return Validated(score(answerer_of(session), shares, book), book)
