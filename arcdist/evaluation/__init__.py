"""How right the models are: answers, their grades, scores over a set of queries."""

from arcdist.evaluation.answers import (
    AnswerBook,
    Grades,
    Noted,
    answer,
    canvas_target,
    fit_canvas,
    grade,
)
from arcdist.evaluation.score import (
    Answerer,
    score,
)

__all__ = [
    "AnswerBook",
    "Answerer",
    "Grades",
    "Noted",
    "answer",
    "canvas_target",
    "fit_canvas",
    "grade",
    "score",
]
