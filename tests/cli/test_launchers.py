"""The launcher files: what they say, and what processes they start, without a word of the launcher's own."""

import base64
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

CHECKOUT = Path(__file__).resolve().parents[2]
ONE_PROCESS = ["cpu", "single_gpu"]
ZERO = ["zero1", "zero2", "zero2_offload", "zero3"]
LAUNCHERS = [*ONE_PROCESS, "cpu_2proc", "multi_gpu", *ZERO, "multi_node_zero2"]

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")

# One write a process, so that lines do not mix.
SHOW = """\
import json, os
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
given = {name: value for name, value in os.environ.items() if name in names or name.startswith("ACCELERATE_")}
os.write(1, (json.dumps(given) + "\\n").encode())
"""

Start = Callable[..., subprocess.Popen[str]]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="Accelerate's launcher itself asks for DeepSpeed"
)


def launcher_file(name: str) -> str:
    return str(CHECKOUT / "accelerate_configs" / f"{name}.yaml")


def surroundings(name: str) -> dict[str, str]:
    """The environment of a user who has set nothing; under DeepSpeed, who has answered what would be asked."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "OMP_"))}
    if "zero" in name:
        # Without the one torchrun says that it chooses a number of threads; without the other DeepSpeed that it finds
        # no GPU.
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return environment


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Launch a program in which each process prints what the launcher has given it."""
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    launchers = []

    def start_one(name: str, *flags: str) -> subprocess.Popen[str]:
        command = [*ACCELERATE, "--config_file", launcher_file(name), *flags, str(script)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        launchers.append(subprocess.Popen(command, env=surroundings(name), text=True, **pipes))
        return launchers[-1]

    yield start_one
    for launcher in launchers:
        launcher.terminate()
        launcher.wait()


def finish(launcher: subprocess.Popen[str]) -> list[dict[str, str]]:
    """What the processes of a launcher printed, by rank; the launcher must have said nothing."""
    output, errors = launcher.communicate(timeout=120)
    assert errors == ""
    assert launcher.returncode == 0
    return sorted((json.loads(line) for line in output.splitlines()), key=lambda given: int(given.get("RANK", "0")))


def test_these_are_all():
    assert sorted(path.stem for path in (CHECKOUT / "accelerate_configs").iterdir()) == sorted(LAUNCHERS)
    assert sorted(path.stem for path in (CHECKOUT / "ds_configs").iterdir()) == ZERO


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_file_sets_processes_and_nothing_that_the_run_configuration_owns(name):
    config = load_config_from_file(launcher_file(name))
    assert config.num_machines == (2 if name == "multi_node_zero2" else 1)
    assert config.num_processes == (1 if name in ONE_PROCESS else 16 if name == "multi_node_zero2" else 2)
    # Accelerate refuses even a "no" beside a deepspeed_config_file.
    assert config.mixed_precision == (None if "zero" in name else "no")
    kind = "NO" if name in ONE_PROCESS else "DEEPSPEED" if "zero" in name else "MULTI_GPU"
    assert config.distributed_type.value == kind
    assert config.deepspeed_config.keys() <= {"deepspeed_config_file", "deepspeed_multinode_launcher"}
    assert not any((config.dynamo_config, config.fsdp_config, config.megatron_lm_config, config.fp8_config))
    if "zero" in name:
        file = config.deepspeed_config["deepspeed_config_file"]
        assert file == f"ds_configs/{name.removeprefix('multi_node_')}.json"
        assert (CHECKOUT / file).is_file()


@pytest.mark.parametrize("name", ZERO)
def test_a_deepspeed_file_has_no_number_but_its_stage(name):
    content = json.loads((CHECKOUT / "ds_configs" / f"{name}.json").read_text())

    def numbers(section: dict[str, Any]) -> list[Any]:
        below = [number for value in section.values() if isinstance(value, dict) for number in numbers(value)]
        return below + [value for value in section.values() if type(value) in (int, float)]

    assert numbers(content) == [int(name[4])]
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert content[key] == "auto"
    assert content["gradient_clipping"] == "auto"
    assert not content.keys() & {"fp16", "bf16", "optimizer", "scheduler"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_PROCESS)
def test_one_process_is_started_without_a_word(name, start):
    (given,) = finish(start(name))
    assert given.keys() & {"RANK", "WORLD_SIZE"} == set()
    assert given["ACCELERATE_MIXED_PRECISION"] == "no"
    assert given.get("CUDA_VISIBLE_DEVICES") == ("-1" if name == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes"),
    [
        ("cpu_2proc", 2),
        ("cpu_2proc", 3),
        ("multi_gpu", 2),
        *(pytest.param(name, 2, marks=needs_deepspeed) for name in ZERO),
    ],
)
def test_several_processes_are_started_without_a_word(name, processes, start):
    given = finish(start(name, "--num_processes", str(processes)))
    assert [one["RANK"] for one in given] == [str(rank) for rank in range(processes)]
    for one in given:
        assert one["WORLD_SIZE"] == one["LOCAL_WORLD_SIZE"] == str(processes)
        assert one["ACCELERATE_MIXED_PRECISION"] == "no"
        assert one.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") == (f"ds_configs/{name}.json" if name in ZERO else None)
        assert ("ACCELERATE_USE_DEEPSPEED" in one) == (name in ZERO)
        if name == "cpu_2proc":
            assert one["CUDA_VISIBLE_DEVICES"] == "-1,-1"


@pytest.mark.slow
@needs_deepspeed
def test_a_launcher_a_machine_makes_one_run(start):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines = [
        start(
            "multi_node_zero2",
            *("--num_processes", "4", "--machine_rank", str(machine)),
            *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
        )
        for machine in range(2)
    ]
    for machine, launcher in enumerate(machines):
        given = finish(launcher)
        assert [one["RANK"] for one in given] == [str(2 * machine), str(2 * machine + 1)]
        for one in given:
            assert (one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"]) == ("4", "2")
            assert one["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == "ds_configs/zero2.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_PROCESS)
def test_the_program_says_under_a_launcher_what_it_says_without(name):
    run = subprocess.run(
        [*ACCELERATE, "--config_file", launcher_file(name), str(CHECKOUT / "launch" / "train.py"), "--print_config"],
        env=surroundings(name),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stderr == ""
    assert yaml.safe_load(run.stdout)["train"]["device"] == "cpu"
    assert run.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")
def test_the_slurm_script_starts_a_launcher_a_node(tmp_path):
    """Slurm's commands and `accelerate` are stood in for: two nodes, one after the other, print their command."""
    commands = {
        "scontrol": 'printf "node7\\nnode9\\n"',
        "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
        "accelerate": 'printf "%s\\n" "$*"',
    }
    tools = tmp_path / "tools"
    tools.mkdir()
    for command, body in commands.items():
        (tools / command).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / command).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    run = subprocess.run(
        [
            "bash",
            str(CHECKOUT / "launch" / "slurm_multi_node.sh"),
            "--recipe",
            "qwen2.5-1.5b",
            "--config",
            "my run.yaml",
        ],
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "node[7,9]",
            "SLURM_JOB_ID": "123456",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        f"launch --config_file accelerate_configs/multi_node_zero2.yaml --num_machines 2 --num_processes 16 "
        f"--machine_rank {node} --main_process_ip node7 --main_process_port 23456 launch/train.py "
        f"--output_dir runs/arcdist_123456 --resume auto --recipe qwen2.5-1.5b --config my run.yaml"
        for node in range(2)
    ]


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_s_own_launcher_starts_processes_that_know_each_other(tmp_path):
    machines = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={machines}"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}", str(CHECKOUT / "launch" / "train.py")]
    command += ["--print_config", "--tracking.wandb", "disabled"]
    environment = {**surroundings("zero"), "PYTHONPATH": str(CHECKOUT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("train:\n") == 1  # by rank 0 alone
    assert [f"--local_rank={rank}" in run.stdout + run.stderr for rank in range(2)] == [True, True]


@pytest.mark.parametrize("program", sorted(path.name for path in (CHECKOUT / "launch").glob("*.py")))
def test_every_program_names_a_variable_that_no_launcher_sets(tmp_path, program):
    environment = {**surroundings(""), "WORLD_SIZE": "two"}
    command = [sys.executable, str(CHECKOUT / "launch" / program)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert run.stderr.startswith(f"{program}: WORLD_SIZE is 'two', and has to be a whole number from 1: ")
    assert (run.stderr.count("\n"), run.stdout, run.returncode) == (1, "", 2)
