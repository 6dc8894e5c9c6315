"""What the command line of the preview asks for, beside the configuration."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arcdist.config import LoadedConfig, Option, Program
from arcdist.errors import ConfigError
from arcdist.files import expanded

PREVIEW = Program(
    name="preview.py",
    purpose="Look at tasks as the models are given them; without a task, at the data source as a whole.",
    arguments=Option(metavar="TASK_ID", sentence="Tasks to look at, such as 007bbfb7."),
    options={
        "query": Option(
            metavar="KIND:N",
            sentence="The pair that is asked for: train:N, a demonstration held out as in training, or test:N, as in "
            "validation. Else test:0, or train:0 with --epoch.",
        ),
        "epoch": Option(
            metavar="E", sentence="The epoch whose augmentation a train query is seen under, counted from 0; else 0."
        ),
        "picture": Option(
            metavar="FILE.png",
            sentence="Draw a picture as well; of several tasks, one each, their ids put before `.png`.",
        ),
    },
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewArguments:
    """Which tasks are looked at, and how."""

    task_ids: tuple[str, ...]
    """Empty for the data source as a whole."""
    kind: Literal["train", "test"]
    """Of the query: a demonstration that is held out, or a test pair."""
    index: int
    """Of the query's pair among the task's demonstrations or tests."""
    epoch: int
    """Of training, whose augmentation is drawn for a train query."""
    picture: Path | None
    """The PNG file to write."""

    def picture_of(self, task_id: str) -> Path | None:
        """The file to draw a task into."""
        if self.picture is None or len(self.task_ids) == 1:
            return self.picture
        # An id may have the names of folders before it.
        return self.picture.with_stem(f"{self.picture.stem}_{task_id.replace('/', '_')}")


def read_arguments(loaded: LoadedConfig) -> PreviewArguments:
    """Read the program's own part of the command line.

    Raises:
        ConfigError: an option has a value that it cannot have, or is given although it has no meaning.
    """
    options = loaded.options
    for name in ("query", "epoch"):
        if name in options and not loaded.arguments:
            raise ConfigError(f"--{name} is about a task, and none is named: give an id, such as 007bbfb7.")
    epoch = options.get("epoch", "0")
    if not epoch.isdecimal():
        raise ConfigError(f"--epoch is {epoch!r}: choose a whole number of at least 0; epochs are counted from 0.")
    query = options.get("query", "train:0" if "epoch" in options else "test:0")
    parts = re.fullmatch(r"(train|test):(\d+)", query, re.ASCII)
    if parts is None:
        raise ConfigError(f"--query is {query!r}: choose train:N or test:N, such as train:0; N is counted from 0.")
    if parts[1] == "test" and "epoch" in options:
        raise ConfigError(
            f"--epoch is about training, but --query {query} is asked in validation, which augments nothing: "
            f"leave --epoch out, or choose a train query."
        )
    picture = expanded(options["picture"]) if "picture" in options else None
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture is {options['picture']!r}: give a file whose name ends in .png.")
    return PreviewArguments(
        task_ids=tuple(dict.fromkeys(loaded.arguments)),
        kind="train" if parts[1] == "train" else "test",
        index=int(parts[2]),
        epoch=int(epoch),
        picture=picture,
    )
