"""The verdict in plain sentences."""

from collections.abc import Iterator

from arcdist.comparison.bootstrap import LEVEL
from arcdist.comparison.verdict import FEWEST_DIFFERING, Contest, Ranking
from arcdist.tracking.wording import hundredths, percent


def verdict_sentences(last: Ranking, best: Ranking) -> tuple[str, ...]:
    """Which side is better and whether that is more than chance, then what the reader has to know of it."""
    return tuple(_sentences(last, best))


def _sentences(last: Ranking, best: Ranking) -> Iterator[str]:
    if last.contests:
        yield from _about(last.contests[0])
        yield from _conditions(last)
        if best.contests and _outcome(best.contests[0]) != _outcome(last.contests[0]):
            yield f"At the best validation of each run: {_in_short(best.contests[0])}."
    else:
        yield "No verdict is possible: " + (
            "the runs were not scored on the same queries."
            if last.apart
            else "it takes two runs that have been validated query by query."
        )
    for run in last.without_validation:
        yield f"{run.called} has no validation by queries and stands outside the verdict."
    if last.contests:
        for side in last.apart:
            yield f"{_capital(side.called)} was asked other queries and stands outside the verdict."


def _about(contest: Contest) -> Iterator[str]:
    leader, rival = contest.leader.called, contest.rival.called
    scores = f"{percent(contest.leader_exact)} against {percent(contest.rival_exact)} of {contest.queries} queries"
    if contest.level:
        yield f"{_capital(leader)} and {rival} are level: each solves {percent(contest.leader_exact)} of the queries."
    elif contest.clear:
        yield (
            f"{_capital(leader)} is better than {rival}: {scores} exact, {_points(contest.difference)} more, "
            f"which is beyond the noise."
        )
    else:
        yield (
            f"{_capital(leader)} is ahead of {rival}, but within the noise: {scores} exact, "
            f"{_points(contest.difference)} more."
        )
    yield (
        f"The {100 * LEVEL:.0f} % interval of the difference is {_interval(contest)} "
        f"(bootstrap over {contest.tasks} tasks)."
    )
    if contest.low > 0 and not contest.clear:
        yield f"They differ in {contest.differing} tasks only: fewer than {FEWEST_DIFFERING} prove nothing."


def _conditions(ranking: Ranking) -> Iterator[str]:
    contest = ranking.contests[0]
    if contest.queries < ranking.asked:
        yield f"Compared are the {contest.queries} queries that all were asked, of {ranking.asked}."
    compared = [run for one in ranking.contests for side in (one.leader, one.rival) for run in side.runs]
    if len({run.record.identity.group for run in compared}) == 1:
        yield "The runs repeat one recipe with other seeds: a difference between them is that of seeds."
    elif len(contest.leader.runs) == len(contest.rival.runs) == 1:
        yield "Another seed may change more: the interval knows one run of each."
    else:
        yield "Runs of one recipe are compared by their mean; the interval takes in how their seeds differ."


def _outcome(contest: Contest) -> tuple[str, str, bool]:
    return contest.leader.letters, contest.rival.letters, contest.clear


def _in_short(contest: Contest) -> str:
    leader, rival = contest.leader.called, contest.rival.called
    if contest.level:
        return f"{leader} and {rival} are level"
    noise = "beyond the noise" if contest.clear else "within the noise"
    return f"{leader} is ahead of {rival} by {_points(contest.difference)} ({_interval(contest)}), {noise}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _points(share: float) -> str:
    return f"{hundredths(share)} points"


def _interval(contest: Contest) -> str:
    return f"{hundredths(contest.low, '+')} to {hundredths(contest.high, '+')} points"
