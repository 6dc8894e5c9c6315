"""What a check has found, and how a check that breaks down becomes a finding itself."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeVar

from arcdist.errors import ArcdistError, PlatformError

T = TypeVar("T")


class Verdict(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARN = "warn"
    """A run may begin, but the user should know."""
    FAIL = "FAIL"
    """A run would fail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found on one process."""

    found: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
    """What to do, where the verdict is not ok and `found` does not say it."""
    exit_code: int = PlatformError.exit_code
    """The program's, where the verdict is FAIL."""
    differing: Verdict = Verdict.OK
    """What it is at least, where processes have found different things."""


def warning(found: str, advice: str) -> Finding:
    """A finding that the user should know of."""
    return Finding(found=found, verdict=Verdict.WARN, advice=advice)


def failure(found: str, advice: str, exit_code: int = PlatformError.exit_code) -> Finding:
    """A finding with which no run can be."""
    return Finding(found=found, verdict=Verdict.FAIL, advice=advice, exit_code=exit_code)


def attempt(look: Callable[[], T], *, broken: Verdict = Verdict.FAIL) -> T | Finding:
    """What `look` gives; where it raises, a finding that says so.

    Args:
        look: a check, or something that a run does as well.
        broken: the verdict where it raises something else than an `ArcdistError`, which is always FAIL.
    """
    try:
        return look()
    except ArcdistError as error:
        return Finding(found=str(error), verdict=Verdict.FAIL, exit_code=error.exit_code)
    except Exception as error:
        return Finding(
            found=f"This could not be looked at. {headline(error)}",
            verdict=broken,
            advice="A run may meet the same error." if broken is Verdict.WARN else "A run would meet the same error.",
        )


def headline(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")


def to_text(findings: Mapping[str, Finding]) -> str:
    """Findings by the name of their check, as JSON."""
    return json.dumps({check: asdict(finding) for check, finding in findings.items()})


def from_text(text: str) -> dict[str, Finding]:
    """The findings that `to_text` wrote."""
    return {
        check: Finding(**{**fields, **{key: Verdict(fields[key]) for key in ("verdict", "differing")}})
        for check, fields in json.loads(text).items()
    }
