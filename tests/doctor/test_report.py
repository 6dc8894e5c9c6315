import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.doctor.finding import Finding, Verdict, failure, warning
from arcdist.doctor.report import Row, conclude, merge, name_ranks
from arcdist.errors import ConfigError, OutOfMemoryError, PlatformError

ONE_HOST = dict.fromkeys(range(4), "node7")
FINE = Finding(found="8 GiB")


@given(st.sets(st.integers(0, 40), min_size=1).map(sorted))
def test_ranks_are_named_shortly_and_none_is_lost(ranks):
    named = name_ranks(ranks)
    assert named.startswith("ranks " if len(ranks) > 1 else "rank ")
    read = []
    for start, end in re.findall(r"(\d+)(?:-(\d+))?", named):
        read += range(int(start), int(end or start) + 1)
    assert read == ranks
    assert named.count(",") + 1 == sum(rank - 1 not in ranks for rank in ranks)


def test_what_is_found_alike_is_one_row_and_nobodys():
    rows = merge({rank: {"a": FINE, "b": failure("none", "some")} for rank in range(4)}, ONE_HOST)
    assert rows == [Row(check="a", who="", finding=FINE), Row(check="b", who="", finding=failure("none", "some"))]


def test_what_only_some_look_at_is_theirs_in_the_order_of_the_checks():
    reports = {0: {"a": FINE, "memory": FINE, "b": FINE}, 1: {"a": FINE, "b": FINE, "c": FINE}}
    assert [(row.check, row.who) for row in merge(reports, ONE_HOST)] == [
        ("a", ""),
        ("memory", ""),
        ("b", ""),
        ("c", ""),
    ]


def test_what_is_found_otherwise_is_named():
    reports = {0: {"a": FINE}, 1: {"a": failure("none", "some")}, 2: {"a": FINE}, 3: {"a": FINE}}
    rows = merge(reports, ONE_HOST)
    assert [(row.who, row.finding.verdict) for row in rows] == [
        ("ranks 0, 2-3", Verdict.OK),
        ("rank 1", Verdict.FAIL),
    ]
    several = merge(reports, {0: "node7", 1: "node7", 2: "node9", 3: "node9"})
    assert [row.who for row in several] == ["ranks 0, 2-3 on node7, node9", "rank 1 on node7"]


@pytest.mark.parametrize("verdict", [Verdict.WARN, Verdict.FAIL])
def test_what_has_to_be_alike_and_is_not_gets_its_verdict(verdict):
    def version(number):
        return {"torch": Finding(found=number, differing=verdict), "memory": Finding(found=number)}

    rows = merge({0: version("2.13"), 1: version("2.12")}, ONE_HOST)
    assert [(row.check, row.finding.verdict) for row in rows] == [
        ("torch", verdict),
        ("torch", verdict),
        ("memory", Verdict.OK),
        ("memory", Verdict.OK),
    ]
    assert rows[0].finding.advice == "Make it the same for all processes."
    assert [row.finding.verdict for row in merge({0: version("2.13"), 1: version("2.13")}, ONE_HOST)] == ["ok", "ok"]


def row(check, finding, who=""):
    return Row(check=check, who=who, finding=finding)


@pytest.fixture
def rank(monkeypatch):
    def become(number):
        monkeypatch.setenv("RANK", str(number))

    become(0)
    return become


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_check_found_verdict_and_what_to_do(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [row("memory", FINE, "rank 0"), row("memory", warning("1 GiB", "Close programs. " * 8), "rank 1")]
    conclude([row("launch", Finding(found="one process")), *rows])
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= width
    words = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]
    assert words[0] == ["check", "found", "verdict"]
    assert words[2] == ["launch", "one process", "ok"]
    assert words[3] == ["memory", "rank 0: 8 GiB", "ok"]
    assert words[4] == ["rank 1: 1 GiB", "warn"]
    assert words[5][0].startswith("→ Close programs. Close")
    assert " ".join(line[0] for line in words[5:]) == "→ " + ("Close programs. " * 8).strip()


@pytest.mark.parametrize(("codes", "kind"), [((3, 2), PlatformError), ((2, 3), ConfigError), ((4,), OutOfMemoryError)])
@pytest.mark.usefixtures("rank")
def test_the_first_failed_check_gives_the_error(capsys, codes, kind):
    rows = [row(f"check {code}", failure("none", "some", code)) for code in codes]
    with pytest.raises(kind) as raised:
        conclude([row("launch", warning("two", "one")), *rows])
    names = ", ".join(f"check {code}" for code in codes)
    assert str(raised.value) == f"Failed: {names}. What to do stands in the table."
    assert capsys.readouterr().out.count("→ some") == len(codes)


def test_a_process_without_a_table_says_all_itself(rank, capsys):
    rank(1)
    with pytest.raises(PlatformError) as raised:
        conclude([row("PyTorch", failure("not installed", "Install it.")), row("Python", FINE)])
    assert str(raised.value) == "PyTorch: not installed. Install it."
    conclude([row("Python", FINE)])
    assert capsys.readouterr().out == ""
