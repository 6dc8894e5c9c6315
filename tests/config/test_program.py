import pytest

from arcdist.config import TRAIN, Option, Program, load_config
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


def test_a_program_has_its_own_flags_and_all_keys():
    assert BAKE.flags == ("--recipe", "--config", "--slowly", "--help")
    loaded = load_config(["--slowly", "--epochs", "3"], BAKE)
    assert loaded.switches == {"slowly"}
    assert loaded.config.train.epochs == 3
    assert load_config([], BAKE).switches == frozenset()


def test_training_has_its_own_too():
    assert TRAIN.flags == ("--recipe", "--config", "--resume", "--print_config", "--dry_run", "--help")
    loaded = load_config(["--dry_run"])
    assert (loaded.dry_run, loaded.print_config) == (True, False)


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
def test_options_take_values_and_some_stand_alone(argv, options):
    loaded = load_config(argv, FRY)
    assert loaded.options == options
    assert loaded.switches == frozenset()


def test_an_option_that_needs_a_value_says_so():
    with pytest.raises(ConfigError, match=r"The command line: argument --minutes: expected one argument"):
        load_config(["--minutes"], FRY)


def test_help_shows_which_values_may_be_left_out(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"], FRY)
    assert "[--KEY VALUE ...] [--minutes N] [--oil [KIND]]" in capsys.readouterr().out
