"""How much each term of the expected free energy weighs in a run's loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from arcdist.comparison.logged import number
from arcdist.comparison.runs import Run
from arcdist.comparison.sheet import Line, Sheet
from arcdist.tracking.run_record import RunRecord

LAMBDAS = {
    "risk": "efe.lambda_risk",
    "ambiguity": "efe.lambda_amb",
    "step": "efe.lambda_step",
    "consistency": "efe.lambda_cons",
    "bidirectional": "efe.lambda_bi",
    "z_learning": "efe.lambda_z",
    "prompt": "efe.lambda_prompt",
}
"""The key of each term's weight."""


def efe_sheet(runs: Sequence[Run]) -> Sheet:
    """Share of each term in the weighted total, a column a run."""
    shares = [last_shares(run.record) for run in runs]
    lines = tuple(
        Line(
            key=term,
            label=f"{term}, %",
            values=tuple(None if known is None else known[term] for known in shares),
            unit="percent",
        )
        for term in LAMBDAS
    )
    return Sheet(
        key="efe_shares",
        title="EFE terms",
        columns=tuple(run.letter for run in runs),
        lines=lines,
        note="Share of λ · term in their sum, in the last epoch; before the first one ends, in the last logged step.",
    )


def last_shares(record: RunRecord) -> dict[str, float] | None:
    """The shares in the last epoch, or in the last logged step of a run without one; none where no term is known."""
    weights = {term: record.config.get(name) for term, name in LAMBDAS.items()}
    for entry in (*reversed(record.epochs), *reversed(record.steps)):
        terms = {term: value for term in LAMBDAS if (value := number(entry, f"efe/{term}")) is not None}
        if len(terms) == len(LAMBDAS):
            return shares_of(terms, weights)
    return None


def shares_of(terms: Mapping[str, float], weights: Mapping[str, Any]) -> dict[str, float] | None:
    """|λ · term| over the sum of these, which is 1 over all terms; none where that is 0 or a weight is not known."""
    if any(weights.get(term) is None for term in terms):
        return None
    parts = {term: abs(float(weights[term]) * value) for term, value in terms.items()}
    total = sum(parts.values())
    return {term: part / total for term, part in parts.items()} if total > 0 else None
