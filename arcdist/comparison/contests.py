"""The leading side against each other one, as a table."""

from arcdist.comparison.bootstrap import LEVEL
from arcdist.comparison.sheet import Line, Sheet
from arcdist.comparison.verdict import Ranking


def contest_sheet(ranking: Ranking) -> Sheet | None:
    """A column a rival, the closest first; none where nothing can be compared."""
    contests = ranking.contests
    if not contests:
        return None
    leader = contests[0].leader.letters
    others = contests[0].rival.letters if len(contests) == 1 else "the others"
    lines = (
        Line(key="leader", label=f"{leader}, %", values=tuple(c.leader_exact for c in contests), unit="percent"),
        Line(key="rival", label="the other, %", values=tuple(c.rival_exact for c in contests), unit="percent"),
        Line(key="difference", label="difference", values=tuple(c.difference for c in contests), unit="percent"),
        Line(
            key="low", label=f"{100 * LEVEL:.0f} % interval from", values=tuple(c.low for c in contests), unit="percent"
        ),
        Line(key="high", label="to", values=tuple(c.high for c in contests), unit="percent"),
        Line(key="differing", label="tasks that differ", values=tuple(c.differing for c in contests)),
        Line(
            key="clear",
            label="beyond the noise",
            values=tuple(c.clear for c in contests),
            unit="yes or no",
        ),
    )
    return Sheet(
        key=f"contests_{ranking.moment}",
        title=f"{leader} against {others}, {ranking.moment} validation",
        columns=tuple(contest.rival.letters for contest in contests),
        lines=lines,
        note=f"Exact grids, in percent of the {contests[0].queries} queries of {contests[0].tasks} tasks asked of all.",
    )
