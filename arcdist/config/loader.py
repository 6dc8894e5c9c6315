"""From a command line to a configuration: defaults, then a recipe, then a file, then flags."""

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

from arcdist.cli import OneLineParser, standard_error
from arcdist.config.keys import REMOVED_KEYS, Key, RawValue, build, config_keys, config_sections, nearest, parse_yaml
from arcdist.config.schema import Config
from arcdist.errors import ConfigError, reason
from arcdist.files import expanded

NEWEST, AUTO = "newest", "auto"
"""What `--resume` means without a value, and the value for schedulers."""
_NO_RESUME = ("false", "no", "none", "null")
_RESUME_WORDS = ("true", "yes", "latest", "last", *_NO_RESUME)
"""What other programs take for `--resume`."""
DEFAULT_ROOT = Path("runs")
"""Where runs without a folder of their own go."""
DEFAULT_RECIPE = "quickstart"
_LOCAL_RANK = ("--local_rank", "--local-rank")
"""What DeepSpeed's and PyTorch's older launcher add to the command line of each process."""
_RECIPES = resources.files("arcdist.config") / "recipes"

SHORT_FLAGS = {
    "train.epochs": "--epochs",
    "train.budget_minutes": "--budget_minutes",
    "train.max_batches": "--max_batches",
    "train.batch_size": "--batch_size",
    "train.device": "--device",
    "train.seed": "--seed",
    "optim.agent_lr": "--agent_lr",
    "optim.qwen_lr": "--qwen_lr",
    "output.log_every": "--log_every",
    "output.save_every": "--save_every",
    "output.dir": "--output_dir",
    "solve.views": "--views",
    "solve.adapt_steps": "--adapt_steps",
}
"""The keys that have a short flag beside the dotted one."""

KEY_VARIABLES = {"tracking.wandb_project": "WANDB_PROJECT", "tracking.wandb_entity": "WANDB_ENTITY"}
"""The keys that a variable of the environment gives a value if neither recipe, file nor flag does."""
_MODE_VARIABLES = ("WANDB_DISABLED", "WANDB_MODE")
"""What decides at each start, and not for a run, if `tracking.wandb` is null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A flag that takes a value, or words that belong to no flag."""

    metavar: str
    """What help calls the value, or one of the words."""
    sentence: str
    """What it means."""
    if_bare: str | None = None
    """The value if the flag is given without one; None if it needs one."""
    is_count: bool = False
    """Whether the value must be a whole number of at least 1."""
    is_amount: bool = False
    """Whether the value must be a number above 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A program whose flags are the keys of the configuration, and some of its own."""

    name: str
    """As its help calls it, such as `train.py`."""
    purpose: str
    """What it does, in a sentence."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Its own flags that take no value, without their dashes, with their help."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Its own flags that take a value, without their dashes."""
    arguments: Option | None = None
    """What it takes before, after and between its flags; None if every word belongs to a flag."""
    of_run: bool = False
    """Whether the first of these words is a run, whose configuration is in place of a recipe. Of a file of `--config`
    then counts what has an effect and differs from the run's: the file of a whole run may be given."""
    keys: tuple[str, ...] | None = None
    """What the keys begin with whose flags have an effect; None if all have."""

    def takes(self, key: str) -> bool:
        """Whether a flag of this key has an effect."""
        return self.keys is None or key.startswith(self.keys)

    @property
    def flags(self) -> tuple[str, ...]:
        """Every flag that is no key of the configuration."""
        recipe = () if self.of_run else ("--recipe",)
        return (*recipe, "--config", *(f"--{name}" for name in (*self.options, *self.switches)), "--help")


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
            sentence="Continue from a checkpoint, or from the newest whole one of a run folder; of --output_dir if no "
            "path is given. `auto` starts a run if there is none yet.",
            if_bare=NEWEST,
        ),
        "profile": Option(
            metavar="N",
            sentence="Record N steps, after 5 to warm up, with PyTorch's profiler: where their time goes, in profile/ "
            "of the run folder.",
            is_count=True,
        ),
        "dollars_per_hour": Option(
            metavar="X",
            sentence="With --dry_run: the price of all devices of the run together, to print what the run costs.",
            is_amount=True,
        ),
    },
)


_OF_ANSWERS = (
    *("solve.", "distributed.timeout", "distributed.silence", "data.max_context_pairs", "qwen.model", "qwen.dtype"),
    *("train.device", "train.cpu_threads", "train.precision", "train.seed"),
)
"""The keys that count where a trained run answers; the others say how it was built and trained."""
EVALUATE = Program(
    name="evaluate.py",
    purpose="Answer puzzles with a trained run, and score the answers as the benchmark does.",
    arguments=Option(
        metavar="RUN",
        sentence="A run folder, one of its checkpoints, or an export. Its own validation queries are answered unless "
        "--data.source names others.",
    ),
    of_run=True,
    keys=(
        *_OF_ANSWERS,
        *("data.source", "data.split", "data.max_side", "data.max_tasks", "data.allow_overlap", "output.dir"),
    ),
)
SOLVE = Program(
    name="solve.py",
    purpose="Answer single puzzles with a trained run, and show them.",
    arguments=Option(
        metavar="RUN PUZZLE",
        sentence="A run folder, one of its checkpoints, or an export; then files of task JSON, or ids of the run's "
        "own tasks.",
    ),
    of_run=True,
    keys=_OF_ANSWERS,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    """What a command line asks for."""

    config: Config
    """The merged configuration."""
    sources: dict[str, str]
    """Where the value of each dotted key came from: `default`, `recipe NAME`, `file PATH`, `flag`, or a variable;
    `run PATH` if a program that takes a run has it from there."""
    recipe: str | None
    """The recipe that was applied; None if a file alone was."""
    switches: frozenset[str]
    """The program's own flags without a value that were given, without their dashes."""
    options: Mapping[str, str]
    """The values of the program's own flags that take one and were given, as text."""
    arguments: tuple[str, ...]
    """The words that belong to no flag."""

    def is_given(self, key: str) -> bool:
        """Whether the command line gives a key a value, itself or by a file that differs from its run."""
        return self.sources[key] == "flag" or self.sources[key].startswith("file ")


def load_config(argv: Sequence[str], program: Program = TRAIN) -> LoadedConfig:
    """Merge the defaults, variables of the environment, a recipe, a file and flags, each over the one before it.

    Without `--recipe` and `--config` the recipe is `quickstart` or, for a run that is resumed, its own configuration;
    with both, the file is applied over the recipe. A program that takes a run applies file and flags over that run's
    configuration, as far as they have an effect. Removed keys in a file are ignored, which process 0 says on standard
    error.

    Args:
        argv: The command line without the program's name. `--help` prints every key and exits.
        program: Whose command line it is.

    Raises:
        ConfigError: An unknown key, recipe, file or run, a value of a wrong type, or values that contradict each other.
    """
    given = _read_words(argv, program)
    arguments = tuple(given.pop("arguments", ()))
    recipe, file = given.pop("recipe", None), given.pop("config", None)
    switches = frozenset(name for name in program.switches if given.pop(name, False))
    options = {name: given.pop(name) for name in program.options if name in given}
    for name, text in options.items():
        if program.options[name].is_count and not (text.isdecimal() and int(text) > 0):
            raise ConfigError(f"--{name} is {text!r}: choose a whole number of at least 1.")
        if program.options[name].is_amount and not _is_amount(text):
            raise ConfigError(f"--{name} is {text!r}: choose a number above 0.")
    _check_resume(options.get("resume"))
    _check_local_rank(given.pop("local_rank", None))

    run_file = None
    if program.of_run:
        run_file = _config_of_named_run(arguments, recipe)
    elif recipe is None and file is None:
        if options.get("resume") == NEWEST and "output.dir" not in given and (run := newest_run()):
            options["resume"] = str(run)  # Another run may save before this one is resumed.
        run_file = _config_of_run(options.get("resume"), given.get("output.dir"))
        recipe = DEFAULT_RECIPE if run_file is None else None
    layers: dict[str, dict[str, RawValue]] = {}
    of_run = _read_file(run_file, program) if run_file is not None else {}
    if run_file is not None:
        # The output folder says where that run was started, seen from there.
        layers[f"{'run' if program.of_run else 'file'} {run_file}"] = {
            name: raw for name, raw in of_run.items() if name != "output.dir"
        }
    if recipe is not None:
        layers[f"recipe {recipe}"] = _read_recipe(recipe)
    if file is not None:
        layers[f"file {file}"] = {
            name: raw
            for name, raw in _read_file(file, program).items()
            if not program.of_run or (program.takes(name) and (name not in of_run or raw.text != of_run[name].text))
        }
    layers["flag"] = {name: RawValue(text=text, where="the command line") for name, text in given.items()}

    keys = config_keys()
    values = {name: key.default for name, key in keys.items()}
    sources = dict.fromkeys(keys, "default")
    types = _typed_parser(program)
    for source, layer in layers.items():
        for name, raw in layer.items():
            values[name] = _converted(types, keys[name], raw)
            sources[name] = source
        if "train.epochs" in layer and "train.budget_minutes" not in layer and values["train.budget_minutes"]:
            # Whoever gives a number of epochs over a budget wants these.
            values["train.budget_minutes"], sources["train.budget_minutes"] = None, source
    if {"train.epochs", "train.budget_minutes"} <= layers["flag"].keys() and values["train.budget_minutes"]:
        raise ConfigError(
            f"--epochs {values['train.epochs']} and --budget_minutes {values['train.budget_minutes']:g} are two "
            f"lengths of one run: leave out --epochs to train by time, or --budget_minutes to train so many epochs."
        )
    for name, variable in KEY_VARIABLES.items():
        # W&B puts the runs of a sweep where the sweep is.
        has_precedence = bool(os.environ.get("WANDB_SWEEP_ID")) or sources[name] == "default" or values[name] is None
        if has_precedence and (text := os.environ.get(variable)):
            values[name] = _converted(types, keys[name], RawValue(text=text, where=variable))
            sources[name] = variable
    if values["tracking.wandb"] is None:
        decide = [f"{name}={text}" for name in _MODE_VARIABLES if (text := os.environ.get(name))]
        sources["tracking.wandb"] = ", ".join(decide) or sources["tracking.wandb"]
    return LoadedConfig(
        config=_build(values, sources),
        sources=sources,
        recipe=recipe,
        switches=switches,
        options=options,
        arguments=arguments,
    )


def _is_amount(text: str) -> bool:
    try:
        return 0.0 < float(text) < math.inf
    except ValueError:
        return False


def _check_resume(value: str | None) -> None:
    """Refuse what other programs take for `--resume`, unless it is a path here."""
    word = (value or "").lower()
    if word not in _RESUME_WORDS or Path(value or "").exists():
        return
    if word in _NO_RESUME:
        raise ConfigError(f"--resume {value}: leave out --resume to start a run.")
    raise ConfigError(
        f"--resume {value}: write --resume alone for the newest checkpoint of --output_dir, or of the run in "
        f"{DEFAULT_ROOT}/ that saved last; --resume {AUTO} to start a run if there is none yet; or --resume PATH."
    )


def _check_local_rank(text: str | None) -> None:
    """Whether the flag of DeepSpeed's launcher says what its environment does, which alone is used."""
    in_environment = os.environ.get("LOCAL_RANK") or "0"
    if text is not None and text != in_environment:
        raise ConfigError(
            f"--local_rank is {text}, but LOCAL_RANK is {os.environ.get('LOCAL_RANK') or 'not set'}: leave it out, and "
            f"start several processes with `accelerate launch`, `torchrun` or `deepspeed`, which set LOCAL_RANK."
        )


def _build(values: Mapping[str, object], sources: Mapping[str, str]) -> Config:
    """Build the tree; if its own checks refuse, say where the values that they name came from."""
    try:
        return build(values)
    except ConfigError as error:
        named = dict.fromkeys(word.rstrip(".") for word in re.findall(r"[a-z_0-9.]+", str(error)))
        given = [f"{name}: {sources[name]}" for name in named if sources.get(name, "default") != "default"]
        raise ConfigError(f"{error} ({'; '.join(given)})" if given else str(error)) from error


def newest_run() -> Path | None:
    """The run in `runs/` that has saved last, by the clock of the disk; None if there is none."""
    saved: dict[Path, int] = {}
    for run in DEFAULT_ROOT.glob("*"):
        for place in (run / "best", *(run / "checkpoints").glob("step_*")) if (run / "config.yaml").is_file() else ():
            with suppress(FileNotFoundError):  # A run that is training removes its oldest checkpoints.
                saved[run] = max(saved.get(run, 0), place.stat().st_mtime_ns)
    return max(saved, key=lambda run: (saved[run], run.name), default=None)


def run_of(path: Path) -> Path:
    """The run folder that a path given to `--resume` means: itself, or that of a checkpoint or of `checkpoints/`."""
    run = path.parent if path.name == "checkpoints" else path
    if any((run / name).exists() for name in ("config.yaml", "checkpoints", "best")):
        return run
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _config_of_run(resume: str | None, directory: str | None) -> Path | None:
    """The `config.yaml` of the run that `--resume` and `--output_dir` name; None if there is none."""
    if resume not in (None, NEWEST, AUTO):
        run = run_of(expanded(resume))
    elif resume is not None and directory is not None:
        run = expanded(directory)
    else:
        return None
    return run / "config.yaml" if (run / "config.yaml").is_file() else None


def _config_of_named_run(arguments: Sequence[str], recipe: str | None) -> Path:
    """The `config.yaml` of the run that is the first word of a command line."""
    if not arguments:
        raise ConfigError("No run is given: name its folder, such as runs/NAME.")
    if recipe is not None:
        raise ConfigError("The configuration is that of the run: leave out --recipe.")
    if not arguments[0] or not expanded(arguments[0]).exists():
        raise ConfigError(f"{arguments[0] or 'An empty name'} does not exist: name a run's folder, such as runs/NAME.")
    file = run_of(expanded(arguments[0])) / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{arguments[0]} is neither a run folder, nor a checkpoint in one, nor an export: none of them has a "
            f"config.yaml. Give the folder that training wrote, such as runs/NAME."
        )
    return file


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _RECIPES.iterdir() if entry.name.endswith(".yaml"))


def _read_recipe(name: str) -> dict[str, RawValue]:
    names = recipe_names()
    if name not in names:
        raise ConfigError(
            f"--recipe {name}: there is no recipe of that name.{nearest(name, names)} "
            f"Choose {', '.join(names)}, or give a file of your own with --config FILE."
        )
    return parse_yaml((_RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}")


def _read_file(path: str | Path, program: Program) -> dict[str, RawValue]:
    """The keys that a file gives, without removed ones, which are reported."""
    try:
        given = parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"--config {path}: {reason(error)}. Give a YAML file that can be read.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: byte {error.start} is not UTF-8. Give a text file.") from error
    removed = [f"{name} ({REMOVED_KEYS[name]})" for name in given if name in REMOVED_KEYS]
    if removed and (os.environ.get("RANK") or "0") == "0":
        standard_error.write(f"{program.name}: {path}: no longer needed, and ignored: {', '.join(removed)}.\n")
    return {name: raw for name, raw in given.items() if name not in REMOVED_KEYS}


def _read_words(argv: Sequence[str], program: Program) -> dict[str, Any]:
    """What `argv` gives, by option name or dotted key: values as text, switches as True."""
    known = [*program.flags, "--recipe", *_LOCAL_RANK, *SHORT_FLAGS.values(), *(f"--{name}" for name in config_keys())]
    words = [word.partition("=")[0] for word in argv]
    if "--help" in words or "-h" in words:
        _typed_parser(program, help_alone=True).print_help()
        raise SystemExit(0)
    for word in words:
        if word.startswith("--") and word not in known:
            if why := REMOVED_KEYS.get(word[2:]):
                raise ConfigError(f"{word} is no longer a flag: {why}. Leave it out.")
            raise ConfigError(f"There is no flag {word}.{nearest(word, known)} --help lists them all.")
    _check_effect(words, program)
    for word, text, after in zip(words, argv, [*argv, ""][1:], strict=True):
        if word[2:] in program.switches and (word != text or after.lower() in ("true", "false")):
            raise ConfigError(f"{word} takes no value: write {word} alone, or leave it out.")
    parser = OneLineParser(prog=program.name, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(*_LOCAL_RANK)
    _add_own_flags(parser, program)
    for name in config_keys():
        parser.add_argument(*_flags_of(name))
    if program.arguments is not None:
        parser.add_argument("arguments", nargs="*")
    return vars(parser.parse_intermixed_args(argv))


def _check_effect(words: Sequence[str], program: Program) -> None:
    """Refuse flags of keys that have no effect in a program, and say why that is so."""
    idle = {word: key for word in words for key in config_keys() if word in _flags_of(key) and not program.takes(key)}
    if not idle:
        return
    of_evaluate = [word for word, key in idle.items() if EVALUATE.takes(key)]
    why = "since how a run was built and trained stays as it is"
    if of_evaluate:
        idle = dict.fromkeys(of_evaluate, "")
        why = f"since {program.name} shows the puzzles that are named, and writes no file: evaluate.py does"
    raise ConfigError(
        f"{', '.join(idle)}: no effect here, {why}. Leave {'it' if len(idle) == 1 else 'them'} out. These count: "
        f"{', '.join(f'{key}*' if key.endswith('.') else key for key in program.keys or ())}."
    )


def _flags_of(key: str) -> list[str]:
    return [f"--{key}", *([SHORT_FLAGS[key]] if key in SHORT_FLAGS else [])]


def _add_own_flags(parser: argparse.ArgumentParser, program: Program) -> None:
    recipe, file = argparse.SUPPRESS, "applied over the run's; that of a whole run may be given: the keys below count."
    if not program.of_run:
        recipe, file = f"One of {', '.join(recipe_names())}; ", "applied over the recipe."
        recipe += f"{DEFAULT_RECIPE} if neither a recipe nor a file is given, and no run is resumed."
    parser.add_argument("--recipe", metavar="NAME", help=recipe)
    parser.add_argument("--config", metavar="FILE", help=f"A YAML file of keys, {file}")
    for name, option in program.options.items():
        bare: dict[str, Any] = {} if option.if_bare is None else {"nargs": "?", "const": option.if_bare}
        parser.add_argument(f"--{name}", metavar=option.metavar, help=option.sentence, **bare)
    for name, sentence in program.switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=sentence)


def _typed_parser(program: Program, *, help_alone: bool = False) -> ArgumentParser:
    """The parser that prints help, of the flags that have an effect, and converts values to the keys' types."""
    own = [
        f" [--{name} {option.metavar if option.if_bare is None else f'[{option.metavar}]'}]"
        for name, option in program.options.items()
    ]
    own += [f" [--{name}]" for name in program.switches]
    words = f"[{program.arguments.metavar} ...] " if program.arguments else ""
    recipe, layers = "[--recipe NAME] ", "Defaults < recipe < file < flags; a YAML file may hold every key below."
    if program.of_run:
        recipe, layers = "", "The run's configuration < file < flags; a default counts if the run does not say."
    parser = ArgumentParser(
        prog=program.name,
        usage=f"%(prog)s {words}{recipe}[--config FILE] [--KEY VALUE ...]{''.join(own)}",
        description=f"{program.purpose} {layers}",
        exit_on_error=False,
        print_config=None,
    )
    if program.arguments is not None:
        parser.add_argument_group(program.arguments.metavar, program.arguments.sentence)
    _add_own_flags(parser, program)
    keys = [key for key in config_keys().values() if program.takes(key.name) or not help_alone]
    sections = {key.section for key in keys}
    groups = {
        name: parser.add_argument_group(name, sentence)
        for name, sentence in config_sections().items()
        if name in sections
    }
    for key in keys:
        groups[key.section].add_argument(
            *_flags_of(key.name),
            type=key.type,
            default=key.default,
            help=key.sentence.replace("%", "%%"),  # argparse formats help with %.
        )
    return parser


def _converted(types: ArgumentParser, key: Key, raw: RawValue) -> object:
    """A written value as the key's type."""
    text = raw.text
    if get_origin(key.type) is tuple and isinstance(text, str) and not text.startswith("["):
        text = [name.strip() for name in text.split(",") if name.strip()]
    takes_null = NoneType in get_args(key.type)
    if takes_null and isinstance(text, str) and text.lower() == "none":
        # A text could be that, but who writes it means Python's None.
        raise ConfigError(f"{key.name} is {text!r} ({raw.where}): write null if there is none.")
    with suppress(argparse.ArgumentError):
        value = types.parse_object({key.name: text}, defaults=False)[key.name]
        # jsonargparse lets null through for every type, and inf for numbers.
        if takes_null if value is None else not isinstance(value, float) or math.isfinite(value):
            return value
    shown = "null" if text is None else repr(text)
    raise ConfigError(f"{key.name} is {shown} ({raw.where}): choose {key.accepted}.")
