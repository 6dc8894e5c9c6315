"""What is said of an error."""

import pytest

from arcdist.errors import kind_and_reason, reason


@pytest.mark.parametrize(
    ("error", "said", "of_kind"),
    [
        (ValueError("no\nnumber"), "no", "ValueError: no"),
        (TimeoutError(), "TimeoutError", "TimeoutError"),
        (RuntimeError(" \n"), "RuntimeError", "RuntimeError"),
        (OSError(28, "No space left", "a"), "No space left", "OSError: [Errno 28] No space left: 'a'"),
        (OSError("no number"), "no number", "OSError: no number"),
        (OSError(), "OSError", "OSError"),
    ],
)
def test_it_is_never_empty(error, said, of_kind):
    assert reason(error) == said
    assert kind_and_reason(error) == of_kind
