"""The `datasets` library as arcdist uses it: without progress bars, and cached where the user's cache is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets

from arcdist.errors import PlatformError


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the bars of `datasets` inside the block: arcdist draws one of its own."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def cache_file(name: str) -> Iterator[Path]:
    """Give the path of a file of ours in the Hugging Face cache, to be written or read inside the block.

    Raises:
        PlatformError: the cache cannot be written, or the disk is full.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "arcdist"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / name
    except OSError as error:
        raise PlatformError(
            f"The Hugging Face cache {folder} cannot be written ({error.strerror or error}): "
            f"make room there, or set HF_HOME or HF_DATASETS_CACHE to a folder that can."
        ) from error
