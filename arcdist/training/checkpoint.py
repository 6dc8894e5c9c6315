"""Checkpoints: the only code that writes and reads a run's state.

A checkpoint is a folder that is complete or does not exist: it is written under another name, its files are forced to
disk, and renaming it is the last thing that happens. It holds tensors (safetensors) and JSON, never pickled objects.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcdist.errors import DataError

WEIGHTS, MOMENTS, STATE = "weights.safetensors", "moments.safetensors", "state.json"


def save_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint; one of the same name is replaced once the new one is whole.

    Raises:
        DataError: what stands in a file is not what was to be saved.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tensors in ((WEIGHTS, weights), (MOMENTS, moments)):
        save_file(dict(tensors), partial / name)
        _read_back(partial / name, tensors)
    (partial / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, MOMENTS, STATE):
        _force_to_disk(partial / name)
    _force_to_disk(partial)
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced)
    else:
        partial.rename(folder)
    _force_to_disk(folder.parent)


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after so many steps belongs."""
    return root / f"step_{step:08d}"


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints under a folder, the oldest first."""
    return sorted(root.glob("step_" + "[0-9]" * 8))


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the newest checkpoints."""
    for folder in checkpoints(root)[:-keep_last]:
        shutil.rmtree(folder)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, moments and state of a checkpoint.

    Raises:
        DataError: a file is missing or broken.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return load_file(folder / WEIGHTS), load_file(folder / MOMENTS), state
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} is no whole checkpoint ({error}): choose another.") from error


def _read_back(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise DataError(f"{path} was not written as it should have been ({', '.join(wrong[:3])}, …): check the disk.")


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
