import os
import shutil
from types import SimpleNamespace

import datasets
import psutil
import pytest
import torch

from arcdist import machine
from arcdist.config import OutputConfig, TrainConfig
from arcdist.doctor import resources
from arcdist.doctor.finding import Verdict
from arcdist.doctor.resources import GIB, check_cache, check_cores, check_memory, check_output


@pytest.fixture
def room(monkeypatch):
    def make(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=free))

    return make


def test_a_folder_that_can_be_made_is_in_order_and_is_not_made(tmp_path, room):
    room(5 * GIB)
    folder = tmp_path / "deep" / "run"
    finding = check_output(OutputConfig(dir=str(folder)))
    assert (finding.found, finding.verdict) == (f"{folder} can be written, 5 GiB free", Verdict.OK)
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_it_is_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output(OutputConfig()).found.startswith("runs can be written")
    (tmp_path / "runs").touch()
    finding = check_output(OutputConfig())
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert finding.found.startswith("runs cannot be written: Not a directory")
    assert "--output_dir" in finding.advice


def test_the_folder_of_another_run_is_refused_as_by_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    finding = check_output(OutputConfig(dir=str(tmp_path)))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert finding.found == f"{tmp_path} holds another run (checkpoints)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert check_output(OutputConfig(dir=str(tmp_path / "run"))).verdict is Verdict.FAIL


def test_a_full_disk_is_worth_a_warning(tmp_path, room):
    room(GIB - 1)
    finding = check_output(OutputConfig(dir=str(tmp_path)))
    assert finding.verdict is Verdict.WARN
    assert finding.advice.startswith("Make room there.")


def test_a_cache_that_cannot_be_written_is_the_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert check_cache().verdict is Verdict.OK
    (tmp_path / "cache").touch()
    finding = check_cache()
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert "HF_HOME" in finding.advice


@pytest.mark.parametrize(
    ("cores", "limit", "processes", "threads", "found", "advice"),
    [
        (8, None, 2, 4, "8 cores for 2 processes of 4 threads", ""),
        (1, None, 1, 1, "1 core for 1 process of 1 thread", ""),
        (4, None, 2, 4, "4 cores for 2 processes of 4 threads", "--train.cpu_threads 2"),
        (2, None, 3, 1, "2 cores for 3 processes of 1 thread", "at most 2 processes"),
        (64, 2.5, 1, 64, "2 cores for 1 process of 64 threads (the machine has 64, ", "--train.cpu_threads 2"),
    ],
)
def test_every_thread_needs_a_core(monkeypatch, cores, limit, processes, threads, found, advice):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)))
    monkeypatch.setattr(machine, "most_cores", lambda: limit)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    finding = check_cores(TrainConfig(device="cpu"))
    assert finding.found.startswith(found)
    assert finding.verdict is (Verdict.WARN if advice else Verdict.OK)
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("available", "left", "processes", "found", "verdict"),
    [
        (12, None, 8, "12 of 16 GiB free", Verdict.OK),
        (12, 4, 2, "4 of 16 GiB free", Verdict.OK),
        (3, None, 4, "3 of 16 GiB free", Verdict.WARN),
    ],
)
def test_every_process_needs_memory(monkeypatch, available, left, processes, found, verdict):
    memory = SimpleNamespace(available=available * GIB, total=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(resources, "memory_left", lambda: None if left is None else left * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    finding = check_memory()
    assert (finding.found, finding.verdict) == (found, verdict)
