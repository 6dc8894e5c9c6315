"""Answers of the models, from candidates, votes and test-time training, and how right they are."""

from arcdist.evaluation.answers import Grades, Prediction, Predictions, answer, canvas_target, grade
from arcdist.evaluation.predict import Predictor
from arcdist.evaluation.score import score

__all__ = [
    "Grades",
    "Prediction",
    "Predictions",
    "Predictor",
    "answer",
    "canvas_target",
    "grade",
    "score",
]
