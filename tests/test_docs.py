"""README and docs/ say what is true: commands, flags, keys, files, red flags, exit codes, links.

Run as a program, `python tests/test_docs.py` writes the tables that come from the code.
"""

import argparse
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
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from arcdist import errors
from arcdist.analysis.preview_arguments import PREVIEW, read_arguments
from arcdist.checkpoint.store import FILES, MANIFEST
from arcdist.config import TRAIN, Config, load_config, recipe_names
from arcdist.config.keys import Key, config_keys, config_sections, dotted
from arcdist.config.loader import EVALUATE, SHORT_FLAGS, SOLVE
from arcdist.config.schema import EFE_TERMS
from arcdist.data import FEATURE_NAMES, build_queries, parse_task, read_task_sets
from arcdist.evaluation.predict import ORIGINS
from arcdist.solving import report
from arcdist.solving.queue import PROTOCOL
from arcdist.tracking.run_folder import RUN_CONTENT
from arcdist.training import health

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "BENCHMARKS.md", "CHANGELOG.md")
PAGES += tuple(f"docs/{path.name}" for path in sorted(CHECKOUT.glob("docs/*.md")))
CURRENT = [page for page in PAGES if page != "CHANGELOG.md"]
"""The pages about the present; a changelog names what was."""
keys = functools.cache(config_keys)


@functools.cache
def read(page: str) -> str:
    return (CHECKOUT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


@functools.cache
def sections(page: str) -> dict[str, str]:
    """The text below each heading, without blocks of code, to the next heading of any level."""
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    _, *rest = re.split(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def first_cells(text: str) -> list[list[str]]:
    """For each row of the tables in a text the `names` in its first column, `a/{b,c}` and `efe/TERM` expanded."""
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [[name for code in re.findall(r"`([^`]+)`", row) for name in expanded(code)] for row in rows if "`" in row]


def expanded(code: str) -> list[str]:
    parts = re.split(r"\{(.*?)\}", code.replace("TERM", f"{{{','.join(EFE_TERMS)}}}"))
    return ["".join(choice) for choice in product(*(p.split(",") if i % 2 else [p] for i, p in enumerate(parts)))]


def names_in_tables(page: str, title: str) -> list[str]:
    return [name for row in first_cells(sections(page)[title]) for name in row]


# The tables that come from the code.


def table_of_keys() -> str:
    lines = []
    for section, sentence in config_sections().items():
        lines += [f"### `{section}`", "", sentence, "", "| key | default | meaning |", "|---|---|---|"]
        lines += [row_of_key(key) for key in keys().values() if key.section == section] + [""]
    return "\n".join(lines)


def row_of_key(key: Key) -> str:
    match key.default:
        case tuple(names):
            default = ",".join(names)
        case str(default):
            pass
        case other:
            default = json.dumps(other)
    choices = f" Choose {key.accepted}." if "Literal" in str(key.type) else ""
    meaning = (key.sentence + choices).replace("|", r"\|")
    return f"| `{key.name}` | {f'`{default}`' if default else 'none'} | {meaning} |"


def table_of_terms() -> str:
    lines = ["| term | λ | key | what it is |", "|---|---|---|---|"]
    for term, weight in EFE_TERMS.items():
        key = keys()[f"efe.{weight.name}"]
        lines.append(f"| `{term}` | {key.default} | `{key.name}` | {key.sentence} |")
    return "\n".join(lines) + "\n"


GENERATED = {"docs/configuration.md": ("keys", table_of_keys), "docs/method.md": ("terms", table_of_terms)}


def with_generated(page: str) -> str:
    """The page with its generated table as the code says that it should be."""
    marker, table = GENERATED[page]
    pattern = rf"(<!-- {marker}: .*? -->\n).*?(<!-- end of {marker} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}\n{table()}\n{match[2]}", read(page), flags=re.DOTALL)


@pytest.mark.parametrize("page", GENERATED)
def test_tables_that_come_from_the_code_are_current(page: str) -> None:
    assert read(page) == with_generated(page), "`python tests/test_docs.py` writes the tables"


# Commands.


def commands() -> Iterator[str]:
    """Each command of a bash block, its continuation lines joined and its comment cut off."""
    for page in CURRENT:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").strip().split("\n"):
                yield shlex.join(shlex.split(line, comments=True))
    for row in re.findall(r"^\| .*$", read("BENCHMARKS.md"), re.MULTILINE):
        yield from re.findall(r"`(accelerate launch .*?)`", row)


@pytest.fixture
def folder_with_my_run(tmp_path, monkeypatch) -> Path:
    """A folder with the YAML files of the pages, under the names that their first lines give."""
    for block in blocks("docs/configuration.md", "yaml"):
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
    """A program and its flags; most understand those of train.py besides their own."""
    program, *arguments = words
    assert (CHECKOUT / program).is_file()
    if program in ("launch/checkpoint.py", "launch/compare.py", "launch/report.py"):
        runpy.run_path(str(CHECKOUT / program))["_parser"]().parse_args(arguments)
        return
    if program == "launch/preview.py":
        read_arguments(load_config(arguments, PREVIEW))
        return
    if program in ("launch/evaluate.py", "launch/solve.py"):
        run = Path("a_run")
        run.mkdir()
        (run / "config.yaml").touch()
        load_config([str(run), *arguments[1:]], EVALUATE if program == "launch/evaluate.py" else SOLVE)
        return
    if program == "tests/test_docs.py":
        assert arguments == []
        return
    own = {"launch/bench.py": {"--steps": 1}, "launch/doctor.py": {"--fit": 0}}.get(program, {})
    for flag, values in own.items():
        if flag in arguments:
            at = arguments.index(flag)
            del arguments[at : at + 1 + values]
    check_train(arguments)


def check_make(arguments: list[str]) -> None:
    makefile = read("Makefile")
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
        check_pytest(more)


def check_pytest(arguments: list[str]) -> None:
    """Folders, and the words of `-m` and `-k`: each selects some test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", default=["tests"])
    parser.add_argument("-m", default="")
    parser.add_argument("-k", default="")
    given = parser.parse_args(arguments)
    tests = "".join(path.read_text() for folder in given.folders for path in (CHECKOUT / folder).rglob("test_*.py"))
    for word in set(given.m.split()) - {"not"}:
        assert f"pytest.mark.{word}" in tests
    for word in set(given.k.split()) - {"not"}:
        assert re.search(rf"def test_\w*{word}", tests)


@pytest.mark.parametrize("command", sorted(set(commands())))
@pytest.mark.usefixtures("folder_with_my_run")
def test_a_command_can_be_typed(command: str) -> None:
    words = shlex.split(command)
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
        assert arguments[:2] == ["download", Config().qwen.model]
        assert Path(sys.executable).with_name("hf").exists()
    elif program in ("tensorboard", "wandb"):
        assert Path(sys.executable).with_name(program).exists()
    elif program == "pip":
        assert arguments[0] in ("download", "install")
        assert (CHECKOUT / Path(arguments[arguments.index("-r") + 1]).name).is_file()
    elif words[:2] == ["git", "archive"]:
        assert arguments[-1] == "HEAD"
    elif program == "source":
        assert arguments == [".venv/bin/activate"]
    else:
        assert os.access(CHECKOUT / program, os.X_OK), f"no check for {command!r}: write one"


def test_every_page_with_commands_is_read() -> None:
    assert {page for page in PAGES if blocks(page, "bash")} <= set(CURRENT)
    assert len(set(commands())) > 40


def test_the_sweep_s_runs_have_its_parameters(tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep, several = (yaml.safe_load(block) for block in blocks("docs/tracking.md", "yaml"))
    for pick in (min, max):
        drawn = {name: pick(space.get("values", space.values())) for name, space in numbers_of(sweep).items()}
        words = create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})["args"]
        # As the agent does if the file has no command: /usr/bin/env python PROGRAM ARGS.
        assert create_sweep_command() == ["${env}", "${interpreter}", "${program}", "${args}"]
        run = subprocess.run(
            ["/usr/bin/env", sys.executable, str(CHECKOUT / sweep["program"]), *words, "--print_config"],
            cwd=tmp_path,
            env={**os.environ, "WANDB_SWEEP_ID": "abc", "WANDB_PROJECT": "ours"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        printed = dotted(yaml.safe_load(run.stdout))
        keys_of = {flag.removeprefix("--"): key for key, flag in SHORT_FLAGS.items()}
        assert {name: printed[keys_of.get(name, name)] for name in drawn} == drawn
        assert printed["tracking.wandb_project"] == "ours"
    env, *launcher, program, arguments = several["command"]
    assert (env, program, arguments) == ("${env}", "${program}", "${args}")
    assert launcher[:2] == ["accelerate", "launch"]
    check_launcher(launcher[2:])


def numbers_of(sweep: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of a sweep, without the names of their distributions."""
    return {
        name: {word: value for word, value in space.items() if word != "distribution"}
        for name, space in sweep["parameters"].items()
    }


# Names in the text.


@pytest.mark.parametrize("page", CURRENT)
def test_flags_in_the_text_exist(page: str) -> None:
    of_programs = {"--config_file", "--num_processes", "--machine_rank", "--help", "--fit", "--steps"}
    of_programs |= {"--query", "--epoch", "--picture", "--wandb", "--local_rank"}
    known = {*TRAIN.flags, *SHORT_FLAGS.values(), *(f"--{name}" for name in keys()), *of_programs}
    assert set(re.findall(r"(?<=`)--[a-z_.]+", "".join(sections(page).values()))) <= known


@pytest.mark.parametrize("page", CURRENT)
def test_dotted_keys_in_the_text_exist(page: str) -> None:
    top = "|".join(name for name in config_sections() if "." not in name)
    found = set(re.findall(rf"`((?:{top})\.[a-z0-9_.]+)", read(page)))
    files = {word for word in found if word.endswith((".py", ".yaml", ".json", ".safetensors"))}
    assert found - files <= {*keys(), *config_sections()}


@pytest.mark.parametrize("page", CURRENT)
def test_paths_in_the_text_exist(page: str) -> None:
    for path in re.findall(r"`((?:arcdist|tests|launch|docs|accelerate_configs|ds_configs)/[\w/.]*)`", read(page)):
        assert (CHECKOUT / path).exists(), path


def test_names_of_code_in_contributing_exist() -> None:
    sources = (*CHECKOUT.glob("arcdist/**/*.py"), *CHECKOUT.glob("tests/*/**/*.py"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name in set(re.findall(r"`(_?[A-Za-z]+_\w+|[A-Z]\w+[a-z]\w+)`", read("CONTRIBUTING.md"))):
        assert re.search(rf"\b{name}\b", code), name


def test_readme_names_every_package_and_page() -> None:
    folders = [name for name in names_in_tables("README.md", "The folders") if name.startswith("arcdist/")]
    assert sorted(folders) == sorted(f"arcdist/{file.parent.name}/" for file in CHECKOUT.glob("arcdist/*/__init__.py"))
    assert {page for page in PAGES if page != "README.md"} <= set(re.findall(r"\]\(([\w/.]+)", read("README.md")))


def test_readme_stays_short() -> None:
    assert len(read("README.md").splitlines()) <= 180


def slugs(page: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections(page)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (CHECKOUT / page).parent / path if path else CHECKOUT / page
        assert file.exists(), target
        if anchor:
            assert anchor in slugs(str(file.resolve().relative_to(CHECKOUT))), target


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_to_fill_in(page: str) -> None:
    assert re.findall(r"TODO|FIXME|TBD", read(page)) == []


# Facts.


def test_the_table_of_short_flags_is_whole() -> None:
    rows = re.findall(
        r"^\| `(--\w+)` \| `([a-z._]+)` \|", sections("docs/configuration.md")["Short flags"], re.MULTILINE
    )
    assert dict(rows) == {flag: key for key, flag in SHORT_FLAGS.items()}


def test_the_table_of_recipes_is_whole() -> None:
    assert sorted(names_in_tables("README.md", "Recipes")) == recipe_names()


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_have_the_model_that_the_table_says(recipe: str) -> None:
    (model,) = re.findall(
        rf"^\| `{re.escape(recipe)}` \|.*\| `([^`]+)` \|", sections("README.md")["Recipes"], re.MULTILINE
    )
    assert load_config(["--recipe", recipe]).config.qwen.model == model


def test_the_numbers_of_queries_and_tasks() -> None:
    config = load_config(["--recipe", "quickstart"]).config.data
    tasks = read_task_sets(config).training.used
    trained, scored = len(build_queries(tasks, "train")), len(build_queries(tasks, "test"))
    says = " ".join(sections("README.md")["What to expect"].split())
    assert f"It trains on {trained:,} queries and scores {scored:,}, those of the {len(tasks)} ARC-AGI-2" in says
    assert f"grids have sides up to {config.max_side}." in says
    assert f"| {len(tasks)}, sides up to {config.max_side} |" in sections("README.md")["Recipes"]


def test_the_example_task_is_one() -> None:
    (example,) = blocks("docs/data.md", "json")
    task = parse_task("example", json.loads(example), "docs/data.md")
    assert len(task.demonstrations) == 2
    assert task.tests[0].output is not None


def test_exit_codes() -> None:
    table = sections("docs/troubleshooting.md")["Exit codes"]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert codes == {0, 130, 141, 143, *(kind.exit_code for kind in classes)}


def test_the_files_and_protocols_of_answers() -> None:
    assert set(names_in_tables("docs/solving.md", "The files")) == {*report.FILES, PROTOCOL, "tasks/"}
    assert names_in_tables("docs/solving.md", "Which score it is") == list(report.PROTOCOLS)
    parts = names_in_tables("docs/solving.md", "How an answer is made")
    assert sorted(parts) == sorted(ORIGINS)


def test_red_flags() -> None:
    documented = {row[0] for row in first_cells(sections("docs/troubleshooting.md")["Red flags"])}
    flags = {value.name for value in vars(health).values() if isinstance(value, health.Flag)}
    assert documented == flags | {health.gradient_zero("qwen", 100).name}


def test_the_number_of_features_is_the_documented_one() -> None:
    assert f"{len(FEATURE_NAMES)} numbers" in sections("docs/method.md")["One training step"]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a real run of two steps that logs each, all that a run may log."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tiny = "--data.max_tasks 4 --data.max_side 5 --agent.hidden_dim 16 --agent.max_steps 2 --batch_size 4"
    short = "--epochs 1 --max_batches 2 --log_every 1 --train.cpu_threads 1"
    more = "--qwen.lm_weight 1 --optim.matrix_optimizer muon --output_dir"
    run = subprocess.run(
        [
            sys.executable,
            str(CHECKOUT / "launch" / "train.py"),
            *tiny.split(),
            *short.split(),
            *more.split(),
            str(folder),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_a_run_leaves_the_files_that_the_tables_name(tiny_run) -> None:
    of_run = {name.partition("/")[0] for name in names_in_tables("docs/outputs.md", "The run folder")}
    assert of_run == set(RUN_CONTENT)
    unasked = {"deepspeed.json", "tensorboard", "profile", "solve"}
    assert of_run - unasked == {path.name for path in tiny_run.iterdir()}

    of_checkpoint = set(names_in_tables("docs/outputs.md", "A checkpoint"))
    assert of_checkpoint == {*FILES, MANIFEST}
    for checkpoint in (tiny_run / "best", *(tiny_run / "checkpoints").iterdir()):
        assert {path.name for path in checkpoint.iterdir()} == of_checkpoint
    (row,) = re.findall(r"^\| `state.json` \| (.*) \|$", read("docs/outputs.md"), re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == list(json.loads((tiny_run / "best" / "state.json").read_text()))


@pytest.mark.slow
def test_a_run_logs_the_keys_that_the_tables_name(tiny_run) -> None:
    steps = [json.loads(line) for line in (tiny_run / "steps.jsonl").read_text().splitlines()]
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    (record,) = metrics["epochs"]
    of_steps, of_epochs = (names_in_tables("docs/outputs.md", title) for title in ("`steps.jsonl`", "`metrics.json`"))
    assert len(of_steps) == len(set(of_steps))
    assert len(steps) == 2
    for step in steps:
        assert set(step) ^ set(of_steps) == set()
    assert set(record) ^ set(of_epochs) == {"metric"}
    assert set(metrics["best"]) ^ set(of_epochs) == set()


if __name__ == "__main__":
    for name in GENERATED:
        text = with_generated(name)
        (CHECKOUT / name).write_text(text, encoding="utf-8")
