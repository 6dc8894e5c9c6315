"""A run that has saved its models, and how they are read back."""

import pytest
import torch

from arcdist.checkpoint.state import base_identity, take_snapshot
from arcdist.checkpoint.store import save_checkpoint
from arcdist.config import load_config, save_config
from arcdist.solving.trained import read_trained


@pytest.fixture
def run(build_tiny, tmp_path):
    """The folder of a run that has saved its best, with agent, adapters and memory moved away from their start."""
    session = build_tiny()
    generator = torch.Generator().manual_seed(0)
    models = session.models
    with torch.no_grad():
        for module in (models.qwen, models.averaged_agent.module, models.solver, models.refiner):
            for parameter in module.parameters():
                if parameter.requires_grad or module is models.averaged_agent.module:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    config = session.config
    base = base_identity(models.qwen.body.config, config.qwen.model, random=True, seed=config.train.seed)
    progress = {"step": 6, "epoch": 2, "batch": 0, "epochs": [], "base": base}
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.yaml")
    save_checkpoint(tmp_path / "run" / "best", take_snapshot(session, progress))
    return tmp_path / "run"


@pytest.fixture
def read_models():
    """Read models by the configuration of their run, with more flags on top."""

    def read(path, *flags, run=None):
        config = load_config(["--config", str((run or path) / "config.yaml"), *flags]).config
        return read_trained(path, config, torch.device("cpu"))

    return read
