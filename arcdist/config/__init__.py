"""The one configuration of a run: a tree of frozen dataclasses, and how a command line becomes one."""

from arcdist.config.load import LoadedConfig, load_config, recipe_names
from arcdist.config.program import TRAIN, Arguments, Option, Program
from arcdist.config.schema import (
    AgentConfig,
    AugmentConfig,
    Config,
    CurriculumConfig,
    DataConfig,
    DistributedConfig,
    EFEConfig,
    OptimConfig,
    OutputConfig,
    QwenConfig,
    RefinerConfig,
    RewardConfig,
    SolverConfig,
    TrainConfig,
)
from arcdist.config.yaml_text import format_config, save_config

__all__ = [
    "TRAIN",
    "AgentConfig",
    "Arguments",
    "AugmentConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "DistributedConfig",
    "EFEConfig",
    "LoadedConfig",
    "OptimConfig",
    "Option",
    "OutputConfig",
    "Program",
    "QwenConfig",
    "RefinerConfig",
    "RewardConfig",
    "SolverConfig",
    "TrainConfig",
    "format_config",
    "load_config",
    "recipe_names",
    "save_config",
]
