import pytest

from arcdist.config import TRAIN, Program, load_config
from arcdist.errors import ConfigError

BAKE = Program(name="bake.py", purpose="Bake bread.", switches={"slowly": "Take 100 % of the time."})


def test_a_program_has_its_own_flags_and_all_keys():
    assert BAKE.options == ("--recipe", "--config", "--slowly", "--help")
    loaded = load_config(["--slowly", "--epochs", "3"], BAKE)
    assert loaded.switches == {"slowly"}
    assert loaded.config.train.epochs == 3
    assert load_config([], BAKE).switches == frozenset()


def test_training_has_its_own_too():
    assert TRAIN.options == ("--recipe", "--config", "--print_config", "--dry_run", "--help")
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
