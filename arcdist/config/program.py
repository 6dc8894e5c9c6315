"""What a program's command line takes beside the keys of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from arcdist.config.resumed import NEWEST


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A flag that takes a value."""

    metavar: str
    """What help calls the value."""
    sentence: str
    """What it means."""
    if_bare: str | None = None
    """The value where the flag is given without one; none where it needs one."""
    is_count: bool = False
    """Whether the value has to be a whole number of at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Words that belong to no flag, as many as are given."""

    metavar: str
    """What help calls one of them."""
    sentence: str
    """What they mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A program whose flags are the keys of the configuration, and some of its own."""

    name: str
    """As its help calls it, such as `train.py`."""
    purpose: str
    """What it does, in a sentence."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Its own flags that take no value, without their dashes; each with the sentence of its help."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Its own flags that take one, without their dashes."""
    arguments: Arguments | None = None
    """What it takes beside all flags, before, after or between them; none where every word belongs to a flag."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Every flag that is no key of the configuration."""
        return ("--recipe", "--config", *(f"--{name}" for name in (*self.options, *self.switches)), "--help")


TRAIN = Program(
    name="train.py",
    purpose="Train on ARC.",
    switches={
        "print_config": "Print every value and where it came from; stop.",
        "dry_run": "Build everything, measure, report; stop.",
    },
    options={
        "resume": Option(
            metavar="PATH|auto",
            sentence="Go on from a checkpoint, or from the newest whole one of a run folder; of --output_dir where no "
            "path is given. `auto` starts a run where there is none yet.",
            if_bare=NEWEST,
        ),
        "profile": Option(
            metavar="N",
            sentence="Record N steps, after 5 to warm up, with PyTorch's profiler: where their time goes, in profile/ "
            "of the run folder.",
            is_count=True,
        ),
    },
)
