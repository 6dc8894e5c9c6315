"""Which part of a module is trained, and whether loaded weights fit it."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from arcdist.errors import ConfigError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained parameter by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Every trained parameter and persistent buffer by name, where it is; a frozen base has no part in it."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if name not in frozen}


def on_cpu(value: Tensor) -> Tensor:
    """A copy that nothing else changes."""
    return value.detach().cpu().contiguous().clone()


def moments_of(moments: Mapping[str, Tensor], module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Moments by parameter, from names of the kind `<parameter>@<moment>`.

    Raises:
        ConfigError: a moment of a trained parameter is missing, or there are others.
    """
    names = {f"{name}@{moment}": (name, moment) for name in trainable(module) for moment in MOMENTS}
    check_names(moments, dict.fromkeys(names, torch.empty(0)))
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, (name, moment) in names.items():
        found[name][moment] = moments[key]
    return found


def check_names(weights: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
    """Refuse weights of another model.

    Raises:
        ConfigError: a name is missing or unknown.
    """
    missing, unknown = sorted(known.keys() - weights.keys()), sorted(weights.keys() - known.keys())
    if missing or unknown:
        raise ConfigError(
            f"The weights do not fit the configured model: missing {missing}, unknown {unknown}. "
            f"Use the configuration that they were saved with."
        )
