"""A language model with random weights, the same however its parameters are shared out."""

from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel


@runtime_checkable
class Sharding(Protocol):
    """How a model comes into being where no process may hold it whole."""

    def building(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """While it lasts, transformers builds and loads models in shards of this precision."""

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """While it lasts, the parameter is whole; what process 0 writes into it is shared out at the end."""


class Unsharded:
    """Every process holds all of a model."""

    def building(self, dtype: torch.dtype) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing."""
        return nullcontext()

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing: it is whole."""
        return nullcontext()


UNSHARDED = Unsharded()


def random_body(
    config: PretrainedConfig, dtype: torch.dtype, *, seed: int = 0, sharding: Sharding = UNSHARDED
) -> PreTrainedModel:
    """A model of that configuration without its LM head.

    Weights are drawn parameter by parameter, each from a stream of its own name: a model that is built in shards is the
    same one. Matrices are normal with the configuration's `initializer_range`, scales of norms 1, biases 0.
    """
    with sharding.building(dtype):
        body = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    std = getattr(config, "initializer_range", 0.02)
    for path, module in body.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.is_meta:
                continue  # A shape without numbers.
            with sharding.whole(parameter), torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif isinstance(module, nn.Linear | nn.Embedding):
                    # On the CPU, whatever holds the parameter: a GPU draws other numbers from the same seed.
                    drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
                    parameter.copy_(drawn.normal_(0.0, std, generator=_stream(seed, name)))
                elif parameter.ndim == 1:
                    parameter.fill_(1.0)
    return body


def _stream(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
