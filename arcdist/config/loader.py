"""From a command line to a configuration: defaults, then a recipe, then a file, then flags."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from arcdist.config.keys import Key, RawValue, build, config_keys, config_sections, nearest, parse_yaml
from arcdist.config.schema import Config
from arcdist.errors import ConfigError
from arcdist.files import expanded

NEWEST, AUTO = "newest", "auto"
"""What `--resume` may be given beside a path: nothing, and the word for schedulers."""

DEFAULT_ROOT = Path("runs")
"""Where runs go that are given no folder."""


def newest_run() -> Path | None:
    """The run in `runs/` that has saved last, by the clock of the disk; none if none has."""
    saved = {
        run: max(place.stat().st_mtime_ns for place in places)
        for run in DEFAULT_ROOT.glob("*")
        if (run / "config.yaml").is_file() and (places := [*(run / "checkpoints").glob("step_*"), *run.glob("best")])
    }
    return max(saved, key=lambda run: (saved[run], run.name), default=None)


def config_of_run(resume: str | None, directory: str | None) -> Path | None:
    """The `config.yaml` beside what is resumed; none where there is none.

    Args:
        resume: `--resume`'s value, if it was given.
        directory: `--output_dir`'s.
    """
    if resume is None:
        return None
    if resume not in (NEWEST, AUTO):
        path = expanded(resume)
        places = [path, path.parent, path.parent.parent]
    elif directory is not None:
        places = [expanded(directory)]
    else:
        run = newest_run()
        places = [run] if run else []
    return next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)


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


DEFAULT_RECIPE = "quickstart"

SHORT_FLAGS = {
    "train.epochs": "--epochs",
    "train.max_batches": "--max_batches",
    "train.batch_size": "--batch_size",
    "train.device": "--device",
    "train.seed": "--seed",
    "optim.agent_lr": "--agent_lr",
    "optim.qwen_lr": "--qwen_lr",
    "output.log_every": "--log_every",
    "output.save_every": "--save_every",
    "output.dir": "--output_dir",
}
"""The keys that have a flag of their own beside the dotted one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    """What a command line asks for."""

    config: Config
    """The merged configuration."""
    sources: dict[str, str]
    """Where the value of each dotted key came from: `default`, `recipe NAME`, `file PATH` or `flag`."""
    recipe: str | None
    """The recipe that was applied; none where a file stands alone."""
    switches: frozenset[str]
    """Those of the program's own flags without a value that were given, without their dashes."""
    options: Mapping[str, str]
    """The values of those that take one and were given, as text."""
    arguments: tuple[str, ...]
    """The words that belong to no flag, where the program takes such."""

    @property
    def print_config(self) -> bool:
        """Print the configuration and stop."""
        return "print_config" in self.switches

    @property
    def dry_run(self) -> bool:
        """Build everything, measure, report and stop."""
        return "dry_run" in self.switches


def load_config(argv: Sequence[str], program: Program = TRAIN) -> LoadedConfig:
    """Merge the defaults, a recipe, a file and flags, each over the one before it.

    Without `--recipe` and `--config` the recipe is `quickstart` or, for a run that is resumed, its own configuration;
    with both, the file is applied over the recipe.

    Args:
        argv: The command line without the program's name. `--help` prints every key and exits.
        program: Whose command line it is.

    Raises:
        ConfigError: An unknown key, recipe or file, a value of a wrong type, or values that contradict each other.
    """
    keys = config_keys()
    arguments, argv = _set_apart(argv, program)
    flags = _read_flags(argv, keys, program)
    recipe, file = flags.pop("recipe", None), flags.pop("config", None)
    switches = frozenset(name for name in program.switches if flags.pop(name, False))
    options = {name: flags.pop(name) for name in program.options if name in flags}
    _check_counts(options, program)
    resumed = None
    if recipe is None and file is None:
        resumed = config_of_run(options.get("resume"), flags.get("output.dir"))
        recipe = DEFAULT_RECIPE if resumed is None else None

    layers: dict[str, dict[str, RawValue]] = {}
    if recipe is not None:
        layers[f"recipe {recipe}"] = parse_yaml(_read_recipe(recipe), f"recipe {recipe}", keys, config_sections())
    if file is not None:
        layers[f"file {file}"] = parse_yaml(_read_file(file), file, keys, config_sections())
    if resumed is not None:
        own = parse_yaml(_read_file(str(resumed)), str(resumed), keys, config_sections())
        own.pop("output.dir", None)  # It says where that run was started, seen from there.
        layers[f"file {resumed}"] = own
    layers["flag"] = {name: RawValue(text=text, where="the command line") for name, text in flags.items()}

    values = {name: key.default for name, key in keys.items()}
    sources = dict.fromkeys(keys, "default")
    types = _parser(keys, program)
    for source, layer in layers.items():
        for name, given in layer.items():
            values[name] = _typed(types, keys[name], given)
            sources[name] = source
    return LoadedConfig(
        config=_checked(values, sources),
        sources=sources,
        recipe=recipe,
        switches=switches,
        options=options,
        arguments=arguments,
    )


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    names = (entry.name for entry in _recipe_folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _recipe_folder() -> Traversable:
    return resources.files("arcdist.config") / "recipes"


def _read_recipe(name: str) -> str:
    names = recipe_names()
    if name not in names:
        raise ConfigError(
            f"--recipe {name}: there is no recipe of that name.{nearest(name, names)} "
            f"Choose {', '.join(names)}, or give a file of your own with --config FILE."
        )
    return (_recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}. Give a YAML file that can be read.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: byte {error.start} is not UTF-8. Give a text file.") from error


def _parser(keys: Mapping[str, Key], program: Program, *, as_text: bool = False) -> ArgumentParser:
    """A parser of every flag, which converts values to the keys' types or, `as_text`, only tells them apart."""
    own = "".join(f" [{_usage(name, option)}]" for name, option in program.options.items())
    own += "".join(f" [--{name}]" for name in program.switches)
    words = "" if program.arguments is None else f"[{program.arguments.metavar} ...] "
    parser = ArgumentParser(
        prog=program.name,
        usage=f"%(prog)s {words}[--recipe NAME] [--config FILE] [--KEY VALUE ...]{own}",
        description=f"{program.purpose} Defaults < recipe < file < flags; every key below may stand in a YAML file as "
        "well.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    if program.arguments is not None:  # For help alone: they are set apart from what is parsed.
        parser.add_argument_group(program.arguments.metavar, program.arguments.sentence)
    parser.add_argument(
        "--recipe",
        type=str,
        metavar="NAME",
        help=f"One of {', '.join(recipe_names())}; {DEFAULT_RECIPE} where neither a recipe nor a file is given, and no "
        "run is resumed.",
    )
    parser.add_argument("--config", type=str, metavar="FILE", help="A YAML file of keys, applied over the recipe.")
    for name, option in program.options.items():
        optional: dict[str, Any] = {} if option.if_bare is None else {"nargs": "?", "const": option.if_bare}
        parser.add_argument(f"--{name}", type=str, metavar=option.metavar, help=option.sentence, **optional)
    for name, sentence in program.switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=sentence)
    groups: dict[str, Any] = {
        name: parser.add_argument_group(name, sentence) for name, sentence in config_sections().items()
    }
    for key in keys.values():
        flags = [f"--{key.name}", *([SHORT_FLAGS[key.name]] if key.name in SHORT_FLAGS else [])]
        groups[key.section].add_argument(
            *flags,
            type=str if as_text else key.type,
            default=key.default,
            # argparse formats help with %.
            help=key.sentence.replace("%", "%%"),
        )
    return parser


def _usage(name: str, option: Option) -> str:
    return f"--{name} {option.metavar}" if option.if_bare is None else f"--{name} [{option.metavar}]"


def _set_apart(argv: Sequence[str], program: Program) -> tuple[tuple[str, ...], Sequence[str]]:
    """The words that belong to no flag, wherever they stand, and the others; argparse would want them in one place."""
    if program.arguments is None:
        return (), argv
    arguments: list[str] = []
    flags: list[str] = []
    awaits_value = False
    for word in argv:
        (flags if awaits_value or word.startswith("-") else arguments).append(word)
        awaits_value = word.startswith("--") and "=" not in word and word[2:] not in program.switches
    return tuple(arguments), flags


def _read_flags(argv: Sequence[str], keys: Mapping[str, Key], program: Program) -> dict[str, Any]:
    """What `argv` gives, by option name or dotted key: values as text, switches as True."""
    parser = _parser(keys, program, as_text=True)
    known = [*program.flags, *SHORT_FLAGS.values(), *(f"--{name}" for name in keys)]
    words = [word.partition("=")[0] for word in argv]
    if "--help" in words or "-h" in words:
        _parser(keys, program).print_help()
        raise SystemExit(0)
    for word in words:
        if word.startswith("--") and word not in known:
            raise ConfigError(f"There is no flag {word}.{nearest(word, known)} --help lists them all.")
    try:
        return vars(parser.parse_args(list(argv), defaults=False).as_flat())
    except argparse.ArgumentError as error:
        raise ConfigError(f"The command line: {error}. Write --KEY VALUE or --KEY=VALUE.") from error


def _check_counts(options: Mapping[str, str], program: Program) -> None:
    for name, text in options.items():
        if program.options[name].is_count and not (text.isdecimal() and int(text) > 0):
            raise ConfigError(f"--{name} is {text!r}: choose a whole number of at least 1.")


def _typed(types: ArgumentParser, key: Key, given: RawValue) -> object:
    text = given.text
    if key.is_list and isinstance(text, str) and not text.startswith("["):
        text = [name.strip() for name in text.split(",") if name.strip()]
    try:
        value = types.parse_object({key.name: text}, defaults=False)[key.name]
        # jsonargparse lets null through for every type, and inf for numbers.
        fits = (value is not None or key.is_optional) and not (isinstance(value, float) and not math.isfinite(value))
    except argparse.ArgumentError:
        fits = False
    if not fits:
        shown = "null" if text is None else repr(text)
        raise ConfigError(f"{key.name} is {shown} ({given.where}): choose {key.accepted}.")
    return value


def _checked(values: Mapping[str, object], sources: Mapping[str, str]) -> Config:
    """Build the tree; where its own checks refuse, say where the values that they name came from."""
    try:
        return build(values)
    except ConfigError as error:
        named = [word.rstrip(".") for word in re.findall(r"[a-z_0-9.]+", str(error))]
        given = [
            f"{name}: {sources[name]}" for name in dict.fromkeys(named) if sources.get(name, "default") != "default"
        ]
        raise ConfigError(f"{error} ({'; '.join(given)})" if given else str(error)) from error
