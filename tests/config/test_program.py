import pytest

from arcdist.config import TRAIN, Arguments, Option, Program, load_config
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
    arguments=Arguments(metavar="DISH", sentence="What to eat."),
)


def test_a_program_has_its_own_flags_and_all_keys():
    assert BAKE.flags == ("--recipe", "--config", "--slowly", "--help")
    loaded = load_config(["--slowly", "--epochs", "3"], BAKE)
    assert loaded.switches == {"slowly"}
    assert loaded.config.train.epochs == 3
    assert load_config([], BAKE).switches == frozenset()


def test_training_has_its_own_too():
    assert TRAIN.flags == ("--recipe", "--config", "--resume", "--profile", "--print_config", "--dry_run", "--help")
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


COUNT = Program(
    name="count.py", purpose="Count.", options={"to": Option(metavar="N", sentence="So far.", is_count=True)}
)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "1e3"])
def test_a_count_is_a_whole_number_of_at_least_1(text):
    with pytest.raises(ConfigError, match=f"^--to is {text!r}: choose a whole number of at least 1\\.$"):
        load_config([f"--to={text}"], COUNT)


def test_a_count_that_is_one_is_given_as_it_stands():
    assert load_config(["--to", "10"], COUNT).options == {"to": "10"}
    assert load_config([], COUNT).options == {}


def test_an_option_that_needs_a_value_says_so():
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
def test_words_that_belong_to_no_flag_stand_anywhere(argv, arguments):
    if "-1" in argv:
        with pytest.raises(ConfigError, match=r"agent_lr is -1"):
            load_config(argv, EAT)
        return
    loaded = load_config(argv, EAT)
    assert loaded.arguments == arguments
    assert loaded.config.train.epochs == (3 if any("epochs" in word for word in argv) else 18)
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
