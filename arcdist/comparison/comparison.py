"""Runs side by side: all that is said of them, once, for the terminal, the page and the file."""

from collections.abc import Sequence
from dataclasses import dataclass

from arcdist.comparison.contests import contest_sheet
from arcdist.comparison.cost import cost_sheet
from arcdist.comparison.differences import difference_sheet
from arcdist.comparison.efe_shares import efe_sheet
from arcdist.comparison.puzzles import Puzzle, puzzle_sheet, puzzles
from arcdist.comparison.runs import Run, letter_runs
from arcdist.comparison.scores import group_sheet, score_sheet
from arcdist.comparison.sentences import verdict_sentences
from arcdist.comparison.sheet import Sheet
from arcdist.comparison.verdict import Ranking, rankings
from arcdist.tracking.run_record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs or more, compared."""

    runs: tuple[Run, ...]
    verdict: tuple[str, ...]
    """In sentences, the first of which says it."""
    last: Ranking
    """By the last validation of each run: what the verdict goes by."""
    best: Ranking
    sheets: tuple[Sheet, ...]
    """In the order in which they are read."""
    puzzles: tuple[Puzzle, ...]
    left_out: tuple[str, ...]
    """Why each further run that was named is not among them."""


def compare(records: Sequence[RunRecord], left_out: Sequence[str] = ()) -> Comparison:
    """Compare runs; `left_out` says why others could not be.

    Raises:
        ConfigError: there are too many to tell apart.
    """
    runs = letter_runs(records)
    last, best = rankings(runs)
    sheets = (
        score_sheet(runs),
        group_sheet(runs),
        contest_sheet(last),
        contest_sheet(best),
        cost_sheet(runs),
        puzzle_sheet(runs),
        efe_sheet(runs),
        difference_sheet(runs),
    )
    return Comparison(
        runs=runs,
        verdict=verdict_sentences(last, best),
        last=last,
        best=best,
        sheets=tuple(sheet for sheet in sheets if sheet is not None),
        puzzles=puzzles(runs),
        left_out=tuple(left_out),
    )
