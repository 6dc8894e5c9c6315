"""What a run would need, checked before it begins: on every process, without writing or downloading anything."""

from arcdist.config import Config, Program
from arcdist.distributed import FailureWatch
from arcdist.doctor.examination import Row, Verdict, check_installation, conclude

__all__ = [
    "DOCTOR",
    "examine",
]

DOCTOR = Program(
    name="doctor.py",
    purpose="Look at what training with the same flags would need, and say what to do where something will not work.",
    switches={"fit": "Train on the longest batch too, and compare its peak memory with the device's."},
)


def examine(config: Config, watch: FailureWatch, *, fit: bool) -> None:
    """Print a table of what a run would need, what was found, and what to do.

    Args:
        config: of the run.
        watch: entered once PyTorch can be imported.
        fit: train on the longest batch as well.

    Raises:
        ArcdistError: something has failed; the exit code is the first failed check's.
    """
    findings = check_installation()
    if any(finding.verdict is Verdict.FAIL for finding in findings.values()):
        # Without PyTorch there is no way to learn what other processes have found.
        conclude([Row(check=check, finding=finding) for check, finding in findings.items()])
        return
    from arcdist.doctor.checks import run_checks

    with watch:
        run_checks(config, findings, fit=fit)
