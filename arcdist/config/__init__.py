"""The one configuration of a run: a tree of frozen dataclasses, and how a command line becomes one."""

from arcdist.config.keys import format_config, save_config
from arcdist.config.loader import TRAIN, LoadedConfig, Option, Program, load_config, recipe_names
from arcdist.config.schema import (
    AgentConfig,
    AugmentConfig,
    Config,
    DataConfig,
    OptimConfig,
    OutputConfig,
    QwenConfig,
    RewardConfig,
    TrainConfig,
)

__all__ = [
    "TRAIN",
    "AgentConfig",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "LoadedConfig",
    "OptimConfig",
    "Option",
    "OutputConfig",
    "Program",
    "QwenConfig",
    "RewardConfig",
    "TrainConfig",
    "format_config",
    "load_config",
    "recipe_names",
    "save_config",
]
