import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.doctor.finding import Finding, Verdict, attempt, failure, from_text, to_text, warning
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
    assert attempt(lambda: 7) == 7
    assert warning("little", "more") == Finding(found="little", verdict=Verdict.WARN, advice="more")
    assert failure("none", "some").exit_code == PlatformError.exit_code == 3


@pytest.mark.parametrize("kind", [ConfigError, PlatformError, OutOfMemoryError])
@pytest.mark.parametrize("broken", [Verdict.WARN, Verdict.FAIL])
def test_an_error_of_a_run_fails_with_its_message_and_exit_code(kind, broken):
    finding = attempt(raising(kind("where: mend")), broken=broken)
    assert (finding.found, finding.verdict, finding.exit_code) == ("where: mend", Verdict.FAIL, kind.exit_code)


def test_a_check_that_breaks_down_says_so():
    finding = attempt(raising(KeyError("a")), broken=Verdict.WARN)
    assert finding == warning("This could not be looked at. KeyError: 'a'", "A run may meet the same error.")
    finding = attempt(raising(RuntimeError("first\nsecond")))
    assert finding.verdict is Verdict.FAIL
    assert finding.found.endswith("RuntimeError: first")
    assert attempt(raising(ValueError())).found.endswith("ValueError")


def test_ctrl_c_is_no_finding():
    with pytest.raises(KeyboardInterrupt):
        attempt(raising(KeyboardInterrupt()))
