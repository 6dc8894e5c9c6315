"""Where DeepSpeed is not installed, all that does not need it runs, and what needs it says so."""

import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[3]

# What Python runs first. To all that looks, DeepSpeed is not there: neither its modules nor what pip has noted of it.
UNINSTALL = """\
from importlib.machinery import PathFinder
from importlib.metadata import MetadataPathFinder

find_spec, find_distributions = PathFinder.find_spec, MetadataPathFinder.find_distributions


def find_spec_of_others(name, path=None, target=None):
    return None if name.partition(".")[0] == "deepspeed" else find_spec(name, path, target)


def find_distributions_of_others(context=MetadataPathFinder.Context()):
    return (found for found in find_distributions(context) if found.name != "deepspeed")


PathFinder.find_spec = staticmethod(find_spec_of_others)
MetadataPathFinder.find_distributions = staticmethod(find_distributions_of_others)
"""


@pytest.fixture(scope="session")
def uninstalled(tmp_path_factory):
    """An environment in which DeepSpeed is not installed."""
    folder = tmp_path_factory.mktemp("uninstalled")
    (folder / "sitecustomize.py").write_text(UNINSTALL)
    return (("PYTHONPATH", f"{folder}{os.pathsep}{CHECKOUT}"),)


def test_nobody_finds_deepspeed_there(run_commands, uninstalled):
    looking = "from accelerate.utils import is_deepspeed_available as found; print(bool(found()))"
    run = run_commands("looking", [sys.executable, "-c", looking], dict(uninstalled))
    assert (run.codes, run.out, run.err) == ([0], "False\n", "")


@pytest.mark.parametrize(("config", "processes"), [("cpu", 1), ("cpu_2proc", 2)])
def test_without_deepspeed_training_is_the_same(launched, uninstalled, assert_same_trajectory, config, processes):
    assert_same_trajectory(
        launched(config, processes, program="noting", own_launcher=True, environment=uninstalled),
        launched(config, processes, program="noting"),
        tolerance=0.0,
        of_weights=0.0,
    )


def test_the_launcher_itself_asks_for_deepspeed(run_commands, uninstalled):
    config = str(CHECKOUT / "accelerate_configs" / "zero2.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    run = run_commands("asked", [*launcher, str(CHECKOUT / "launch" / "train.py")], dict(uninstalled))
    assert run.codes == [1]
    assert "DeepSpeed is not installed" in run.err


def test_under_another_launcher_the_program_says_what_to_install(shared_folder, run_commands, uninstalled):
    # What `accelerate launch --config_file accelerate_configs/zero2.yaml` sets for its processes.
    settings = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json",
        "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    flags = ["--recipe=overfit16", "--output_dir", str(shared_folder / "torchrun" / "run")]
    run = run_commands(
        "torchrun", [*torchrun, str(CHECKOUT / "launch" / "train.py"), *flags], settings | dict(uninstalled)
    )
    assert run.codes == [1]
    assert run.root_cause[1] == 3
    (message,) = run.messages
    assert message.startswith("ds_configs/zero2.json asks for DeepSpeed, which cannot be imported (")
    assert "pip install 'arcdist[deepspeed]'" in message
    assert not run.folder.exists()
