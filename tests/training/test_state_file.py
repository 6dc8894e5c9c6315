import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.errors import DataError
from arcdist.training.state_file import read_state

PLACE = Path("run/best/state.json")
VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.text(), VALUES))
def test_an_object_is_read_as_it_is(state):
    assert read_state(json.dumps(state).encode(), PLACE, dict.fromkeys(state, object)) == state


@given(st.binary().filter(lambda content: b"{" not in content))
def test_any_other_bytes_are_refused_with_the_file_s_name(content):
    with pytest.raises(DataError, match=rf"^{PLACE} is no state of a run: it "):
        read_state(content, PLACE)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[1]", "it is a list, not an object."),
        (b"null", "it is a NoneType, not an object."),
        (b"\xff\xfe\xfa", "it cannot be read as JSON ('utf-16-le' codec"),
        (b"{", "it cannot be read as JSON (Expecting property name"),
        (b"[" * 100_000, "it cannot be read as JSON (maximum recursion depth exceeded"),
        (b'{"step": 1}', "it lacks config."),
        (b'{"step": 1, "config": []}', "its config is a list."),
    ],
)
def test_what_is_wrong_is_named(content, why):
    with pytest.raises(DataError) as raised:
        read_state(content, PLACE, {"step": int, "config": dict})
    assert str(raised.value).startswith(f"{PLACE} is no state of a run: {why}")
