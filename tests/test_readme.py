"""The documents hold what they say: commands, flags, keys, files, flags of a run's health, paths."""

import functools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from arcdist import errors
from arcdist.analysis.preview_arguments import PREVIEW, read_arguments
from arcdist.checkpoint.store import FILES, MANIFEST
from arcdist.config import TRAIN, Config, load_config, recipe_names
from arcdist.config.keys import config_keys, config_sections
from arcdist.config.loader import SHORT_FLAGS
from arcdist.data import FEATURE_NAMES, build_queries, parse_task, read_tasks
from arcdist.losses import EFELoss
from arcdist.tracking.run_folder import RUN_CONTENT
from arcdist.training import health

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {name: (CHECKOUT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text below a heading, to the next one of any level."""
    # A comment in a block of code looks like a heading: it stands after an odd number of fences.
    lines = README.split("\n")
    fences = [line.startswith("```") for line in lines]
    headings = [i for i, line in enumerate(lines) if re.match(r"#+ ", line) and sum(fences[:i]) % 2 == 0]
    start = next(i for i in headings if lines[i].lstrip("# ") == title)
    end = next((i for i in headings if i > start), len(lines))
    return "\n".join(lines[start + 1 : end])


def names(text: str) -> list[list[str]]:
    """For each row of the tables in a text the `names` in its first column, `a/{b,c}` spelled out."""
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [[name for code in re.findall(r"`([^`]+)`", row) for name in expanded(code)] for row in rows if "`" in row]


def flat(rows: list[list[str]]) -> list[str]:
    return [name for row in rows for name in row]


def expanded(code: str) -> list[str]:
    parts = re.split(r"\{(.*?)\}", code)
    return ["".join(choice) for choice in product(*(p.split(",") if i % 2 else [p] for i, p in enumerate(parts)))]


def commands() -> Iterator[str]:
    """Each command of a bash block, its continuation lines joined and its comment cut off."""
    for text in DOCUMENTS.values():
        for block in blocks(text, "bash"):
            for line in block.replace("\\\n", " ").strip().split("\n"):
                yield shlex.join(shlex.split(line, comments=True))


COMMANDS = sorted(set(commands()))
FOLDERS = ("arcdist", "launch", "accelerate_configs", "ds_configs")


@pytest.fixture
def folder_with_my_run(tmp_path, monkeypatch) -> Path:
    """A folder with the README's own YAML file under the name that its first line gives."""
    for block in blocks(README, "yaml"):
        name = re.fullmatch(r"# (\S+\.yaml)", block.partition("\n")[0])
        assert name is not None
        (tmp_path / name[1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_train(arguments: list[str]) -> None:
    if "--help" not in arguments:
        load_config(arguments)


def check_launcher(arguments: list[str]) -> None:
    """The flags of `accelerate launch`, before the program."""
    launcher = launch_command_parser().parse_args([*arguments, "script.py"])
    assert (CHECKOUT / launcher.config_file).is_file()


def check_program(words: list[str]) -> None:
    """A program of `launch/` and its flags; the others understand those of train.py beside their own."""
    program, *arguments = words
    if program in ("launch/checkpoint.py", "launch/compare.py", "launch/report.py"):
        runpy.run_path(str(CHECKOUT / program))["_parser"]().parse_args(arguments)
        return
    if program == "launch/preview.py":
        read_arguments(load_config(arguments, PREVIEW))
        return
    own = {"launch/bench.py": {"--steps": 1}, "launch/doctor.py": {"--fit": 0}}.get(program, {})
    assert (CHECKOUT / program).is_file()
    for flag, values in own.items():
        if flag in arguments:
            at = arguments.index(flag)
            del arguments[at : at + 1 + values]
    check_train(arguments)


def check_make(arguments: list[str]) -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    variables = dict(word.split("=", 1) for word in arguments if "=" in word)
    targets = [word for word in arguments if "=" not in word]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for variable in variables:
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable
    more = shlex.split(variables.get("ARGS", ""))
    if targets == ["train"]:
        check_train(more)
    elif more:
        assert targets == ["test"]
        collect(tuple(more))


@functools.cache
def collect(arguments: tuple[str, ...]) -> None:
    # Where no folder is named, one is enough.
    where = [] if any(Path(CHECKOUT, word).exists() for word in arguments) else ["tests/losses"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *where, *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("folder_with_my_run")
def test_a_command_can_be_typed(command: str) -> None:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *arguments = words
    if program == "make":
        check_make(arguments)
    elif words[:2] == ["accelerate", "launch"]:
        script = next(i for i, word in enumerate(arguments) if word.startswith("launch/"))
        check_launcher(arguments[1:script])
        check_program(arguments[script:])
    elif program in ("python", "sbatch"):
        check_program(arguments)
    elif program == "hf":
        assert arguments == ["download", Config().qwen.model]
        assert Path(sys.executable).with_name("hf").exists()
    elif program in ("tensorboard", "wandb"):
        assert Path(sys.executable).with_name(program).exists()
    elif program == "source":
        assert arguments == [".venv/bin/activate"]
    else:
        assert os.access(CHECKOUT / program, os.X_OK), f"no check for {command!r}: write one"


def test_every_flag_in_the_text_exists() -> None:
    of_programs = {"--config_file", "--num_processes", "--machine_rank", "--fit", "--steps"}
    of_programs |= {"--query", "--epoch", "--picture", "--wandb"}
    known = {*TRAIN.flags, *SHORT_FLAGS.values(), *(f"--{name}" for name in config_keys()), *of_programs}
    for document, text in DOCUMENTS.items():
        flags = re.findall(r"(?<=`)--[a-z_.]+", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        assert set(flags) <= known, document


def test_every_dotted_key_in_the_text_exists() -> None:
    sections = "|".join(name for name in config_sections() if "." not in name)
    for document, text in DOCUMENTS.items():
        found = re.findall(rf"`((?:{sections})\.[a-z_.]+)", text)
        files = {word for word in found if word.endswith((".py", ".yaml", ".json", ".safetensors"))}
        assert set(found) - files <= {*config_keys(), *config_sections()}, document


def test_the_tables_of_flags_sections_and_recipes_are_whole() -> None:
    tables = names(section("Configuration"))
    assert [row[0] for row in tables if row[0] in config_sections()] == list(config_sections())
    assert {row[0] for row in tables if row[0].startswith("--")} == set(SHORT_FLAGS.values())
    rows = re.findall(r"^\| `(--\w+)` \| `([a-z._]+)`", section("Configuration"), re.MULTILINE)
    assert dict(rows) == {flag: key for key, flag in SHORT_FLAGS.items()}
    assert sorted(row[0] for row in names(section("Recipes"))) == recipe_names()


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_have_the_model_that_the_table_says(recipe: str) -> None:
    (model,) = re.findall(rf"^\| `{re.escape(recipe)}` \|.*\| `([^`]+)` \|", section("Recipes"), re.MULTILINE)
    assert load_config(["--recipe", recipe]).config.qwen.model == model


def test_the_numbers_of_queries_and_tasks() -> None:
    config = load_config(["--recipe", "quickstart"]).config.data
    tasks = read_tasks(config.source, config.split, config.max_side, config.max_tasks)
    trained, scored = len(build_queries(tasks, "train")), len(build_queries(tasks, "test"))
    says = " ".join(section("What to expect").split())
    assert f"It trains on {trained:,} queries and scores {scored:,}, those of the {len(tasks)} ARC-AGI-2" in says
    assert f"grids have sides up to {config.max_side}." in says
    assert f"| {len(tasks)}, sides up to {config.max_side} |" in section("Recipes")


def test_the_example_task_is_one() -> None:
    (example,) = blocks(README, "json")
    task = parse_task("example", json.loads(example), "README.md")
    assert len(task.demonstrations) == 2
    assert task.tests[0].output is not None


def test_exit_codes() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert codes == {0, 130, 141, 143, *(kind.exit_code for kind in classes)}


def test_red_flags() -> None:
    documented = {row[0] for row in names(section("Run health"))}
    flags = {value.name for value in vars(health).values() if isinstance(value, health.Flag)}
    assert documented == flags | {health.gradient_zero("qwen", 100).name}


def test_terms_of_the_loss_and_their_weights() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", section("How it works"), re.MULTILINE)
    assert {name: float(weight) for name, weight in rows} == EFELoss().weights
    assert f"{len(FEATURE_NAMES)} numbers" in section("How it works")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a real run of two steps that logs each."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tiny = "--data.max_tasks 4 --data.max_side 5 --agent.hidden_dim 16 --agent.max_steps 2 --batch_size 4"
    short = "--epochs 1 --max_batches 2 --log_every 1 --train.cpu_threads 1 --output_dir"
    run = subprocess.run(
        [sys.executable, str(CHECKOUT / "launch" / "train.py"), *tiny.split(), *short.split(), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_a_run_leaves_the_files_that_the_tables_name(tiny_run) -> None:
    documented = [name.removesuffix("/") for name in flat(names(section("What a run leaves")))]
    of_checkpoint = {*FILES, MANIFEST}
    of_run = {name.partition("/")[0] for name in documented if name not in of_checkpoint}
    assert of_checkpoint <= set(documented)
    assert of_run == set(RUN_CONTENT)
    unasked = {"deepspeed.json", "tensorboard", "profile"}
    assert of_run - unasked == {path.name for path in tiny_run.iterdir()}
    for checkpoint in (tiny_run / "best", *(tiny_run / "checkpoints").iterdir()):
        assert {path.name for path in checkpoint.iterdir()} == of_checkpoint

    (row,) = re.findall(r"^\| `state.json` \| (.*) \|$", section("What a run leaves"), re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == list(json.loads((tiny_run / "best" / "state.json").read_text()))


@pytest.mark.slow
def test_a_run_logs_the_keys_that_the_tables_name(tiny_run) -> None:
    steps = [json.loads(line) for line in (tiny_run / "steps.jsonl").read_text().splitlines()]
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    (record,) = metrics["epochs"]
    of_steps, of_epochs = (flat(names(section(title))) for title in ("`steps.jsonl`", "`metrics.json`"))
    assert len(of_steps) == len(set(of_steps))
    assert len(steps) == 2
    for step in steps:
        assert set(step) ^ set(of_steps) == set()
    assert set(record) ^ set(of_epochs) == {"metric"}
    assert set(metrics["best"]) ^ set(of_epochs) == set()


def listed_paths() -> dict[str, str]:
    """Each path of the README's file tree with its purpose."""
    (tree,) = blocks(section("The files"), "text")
    listed, above = {}, []
    for line in tree.rstrip("\n").split("\n"):
        indent, name, purpose = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        above = [*above[: len(indent) // 2], name]
        listed["".join(above)] = purpose
    return listed


def test_every_file_that_contributing_names_exists() -> None:
    named = re.findall(r"`((?:arcdist|tests|launch)/[\w/.]+)`", DOCUMENTS["CONTRIBUTING.md"])
    assert len(named) > 10
    for path in named:
        assert (CHECKOUT / path).exists(), path


def test_every_name_of_code_that_contributing_uses_exists() -> None:
    sources = (*CHECKOUT.glob("arcdist/**/*.py"), *CHECKOUT.glob("tests/*/**/*.py"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = re.findall(r"`(_?[A-Za-z]+_\w+|[A-Z]\w+[a-z]\w+)`", DOCUMENTS["CONTRIBUTING.md"])
    for name in set(named) - {"Makefile"}:
        assert re.search(rf"\b{name}\b", code), name


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (CHECKOUT / target).exists(), target


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_nothing_is_left_to_fill_in(document: str) -> None:
    assert re.findall(r"TODO|FIXME|TBD", (CHECKOUT / document).read_text(encoding="utf-8")) == []
