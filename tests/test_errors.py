"""What is said of an error."""

import pytest

from arcdist.errors import headline, kind_and_reason, reason


@pytest.mark.parametrize(
    ("error", "said", "first", "whole"),
    [
        (ValueError("no\nnumber"), "no", "ValueError: no", "ValueError: no number"),
        (TimeoutError(), "TimeoutError", "TimeoutError", "TimeoutError"),
        (RuntimeError(" \n"), "RuntimeError", "RuntimeError", "RuntimeError"),
        (OSError(28, "No space left", "a"), "No space left", "OSError: [Errno 28] No space left: 'a'", None),
        (OSError("no number"), "no number", "OSError: no number", "OSError: no number"),
        (OSError(), "OSError", "OSError", "OSError"),
    ],
)
def test_it_is_never_empty(error, said, first, whole):
    assert reason(error) == said
    assert headline(error) == first
    assert kind_and_reason(error) == (whole or first)
