"""A checkpoint's `state.json` as an object of which one knows that it has what is needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcdist.errors import DataError


def read_state(content: bytes, path: Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The state of a run.

    Args:
        content: of the file.
        path: of the file, for messages.
        needed: keys that it must have, each with the type of its value.

    Raises:
        DataError: it is no object in JSON, or lacks what is needed. A right checksum does not exclude that.
    """
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no state of a run: it cannot be read as JSON ({error}).") from error
    if not isinstance(state, dict):
        raise DataError(f"{path} is no state of a run: it is a {type(state).__name__}, not an object.")
    for name, kind in (needed or {}).items():
        if name not in state:
            raise DataError(f"{path} is no state of a run: it lacks {name}.")
        if not isinstance(state[name], kind):
            raise DataError(f"{path} is no state of a run: its {name} is a {type(state[name]).__name__}.")
    return state
