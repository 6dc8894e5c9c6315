"""Findings from process to process, their table, the installation; and all of it in order."""

import re
import sys
from importlib import metadata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist import __version__
from arcdist.config import load_config
from arcdist.distributed import FailureWatch
from arcdist.doctor import DOCTOR, examination, examine
from arcdist.doctor.examination import (
    Finding,
    Row,
    Verdict,
    check_installation,
    conclude,
    failure,
    from_text,
    merge,
    name_ranks,
    to_text,
    try_check,
    warning,
)
from arcdist.errors import ConfigError, OutOfMemoryError, PlatformError

FINDINGS = st.builds(
    Finding,
    found=st.text(),
    verdict=st.sampled_from(Verdict),
    advice=st.text(),
    exit_code=st.integers(0, 9),
    differing=st.sampled_from(Verdict),
)


def raising(error):
    def look():
        raise error

    return look


@given(st.dictionaries(st.text(), FINDINGS))
def test_findings_survive_the_way_to_another_process(findings):
    read = from_text(to_text(findings))
    assert read == findings
    assert list(read) == list(findings)


def test_what_a_check_finds_is_passed_on():
    assert try_check(lambda: 7) == 7
    assert warning("little", "more") == Finding(found="little", verdict=Verdict.WARN, advice="more")
    assert failure("none", "some").exit_code == PlatformError.exit_code == 3


@pytest.mark.parametrize("kind", [ConfigError, PlatformError, OutOfMemoryError])
@pytest.mark.parametrize("broken", [Verdict.WARN, Verdict.FAIL])
def test_an_error_of_a_run_fails_with_its_message_and_exit_code(kind, broken):
    finding = try_check(raising(kind("where: mend")), broken=broken)
    assert (finding.found, finding.verdict, finding.exit_code) == ("where: mend", Verdict.FAIL, kind.exit_code)


def test_a_check_that_breaks_down_says_so():
    finding = try_check(raising(KeyError("a")), broken=Verdict.WARN)
    assert finding == warning("This could not be looked at. KeyError: 'a'", "A run may meet the same error.")
    finding = try_check(raising(RuntimeError("first\nsecond")))
    assert finding.verdict is Verdict.FAIL
    assert finding.found.endswith("RuntimeError: first")
    assert try_check(raising(ValueError())).found.endswith("ValueError")


def test_ctrl_c_is_no_finding():
    with pytest.raises(KeyboardInterrupt):
        try_check(raising(KeyboardInterrupt()))


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
    assert rows == [Row(check="a", finding=FINE), Row(check="b", finding=failure("none", "some"))]


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
    assert str(raised.value) == f"Failed: {names}. The table says what to do."
    assert capsys.readouterr().out.count("→ some") == len(codes)


def test_a_process_without_a_table_says_all_itself(rank, capsys):
    rank(1)
    with pytest.raises(PlatformError) as raised:
        conclude([row("PyTorch", failure("not installed", "Install it.")), row("Python", FINE)])
    assert str(raised.value) == "PyTorch: not installed. Install it."
    conclude([row("Python", FINE)])
    assert capsys.readouterr().out == ""


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions, or none."""

    def pretend(**others):
        real = metadata.version

        def version(name):
            if name in others and others[name] is None:
                raise metadata.PackageNotFoundError(name)
            return others.get(name) or real(name)

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def failed(findings):
    return {check: finding for check, finding in findings.items() if finding.verdict is Verdict.FAIL}


def test_what_these_tests_run_with_is_in_order():
    findings = check_installation()
    assert list(findings) == ["Python", "PyTorch", "accelerate", "transformers", "peft", "datasets", "arcdist"]
    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}
    assert findings["Python"].found == f"{sys.version.split()[0]} ({sys.executable})"
    assert findings["PyTorch"].found.startswith(f"{torch.__version__}, built ")
    assert ("without CUDA" in findings["PyTorch"].found) == (torch.version.cuda is None)
    assert findings["peft"].found == metadata.version("peft")
    assert findings["arcdist"].found.startswith(f"{__version__} in ")
    # A difference between machines is worth a word.
    assert {finding.differing for finding in findings.values()} == {Verdict.WARN}


def test_what_is_missing_or_too_old_is_reported_with_the_command(versions):
    versions(peft=None, accelerate="1.2.0", jsonargparse="4.1")
    findings = failed(check_installation())
    assert {check: (finding.found, finding.advice) for check, finding in findings.items()} == {
        "peft": ("not installed", "Install it with `pip install 'peft>=0.19'`."),
        "accelerate": ("1.2.0, but arcdist needs >=1.13", "Install it with `pip install 'accelerate>=1.13'`."),
        "jsonargparse": ("4.1, but arcdist needs >=4.40", "Install it with `pip install 'jsonargparse>=4.40'`."),
    }


def test_what_cannot_be_imported_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    findings = failed(check_installation())
    assert list(findings) == ["peft"]
    assert "which cannot be imported: ModuleNotFoundError" in findings["peft"].found
    assert f"'peft=={metadata.version('peft')}'" in findings["peft"].advice


def test_without_pytorch_nothing_else_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    findings = check_installation()
    assert list(failed(findings)) == ["PyTorch"]
    assert "https://pytorch.org" in findings["PyTorch"].advice
    assert findings["peft"].found == metadata.version("peft")


def test_a_checkout_that_was_never_installed_has_no_bounds(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    findings = check_installation()
    assert failed(findings) == {}
    assert "arcdist" in findings


def test_the_driver_is_reported(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("570.86.15\n")
    monkeypatch.setattr(examination, "_DRIVER", driver)
    assert check_installation()["PyTorch"].found.endswith("; NVIDIA driver 570.86.15")


@pytest.fixture
def looked_at(clean_process, tiny_flags, capsys, monkeypatch):
    """Examine what a tiny run needs; gives the table's first column."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*flags):
        loaded = load_config([*tiny_flags, *flags], DOCTOR)
        try:
            examine(loaded.config, FailureWatch(), fit="fit" in loaded.switches)
        finally:
            run.checks = [
                line[1:].split("  ")[0] for line in capsys.readouterr().out.splitlines() if line[1:2].isalpha()
            ]

    return run


def test_all_is_looked_at_in_order(looked_at):
    looked_at("--fit")
    assert looked_at.checks[:3] == ["check", "Python", "PyTorch"]
    assert looked_at.checks[-4:] == ["start", "all-reduce", "check", "longest batch"]


def test_a_contradiction_keeps_a_run_from_starting(looked_at, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match=r"^Failed: launch\. The table says what to do\.$"):
        looked_at("--train.precision=bf16")
    assert looked_at.checks[-1] == "tasks"


def test_a_start_that_fails_is_reported(looked_at):
    with pytest.raises(ConfigError, match=r"^Failed: start\."):
        looked_at("--batch_size=2", "--train.accumulation=3", "--fit")
    assert looked_at.checks[-2:] == ["start", "longest batch"]


def test_without_a_library_nothing_else_is_looked_at(looked_at, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PlatformError, match=r"^Failed: peft\."):
        looked_at()
    assert looked_at.checks[-1] == "datasets"
