"""Qwen with LoRA reads a task as text; features give a control vector; fused, they are the prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from arcdist.errors import ConfigError
from arcdist.models.qwen_body import load_body
from arcdist.models.random_body import UNSHARDED, Sharding

# B queries, L tokens, D width of Qwen, F features, P prompt

Fuse = Literal["mean", "concat-linear"]


class PromptOutput(NamedTuple):
    """What the grid modules are given of B tasks; a tuple, so that every engine finds its tensors."""

    prompt: Float[Tensor, "B P"]
    """Components of mean 0 and variance 1 for each query."""
    control: Float[Tensor, "B P"]
    """The part that the features gave, likewise normalised."""


def mean_pool(hidden: Float[Tensor, "B L D"], token_mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Mean over the real tokens, summed in float32 whatever the precision of `hidden`."""
    total = (hidden * token_mask.unsqueeze(-1)).sum(dim=1, dtype=torch.float32)
    return total / token_mask.sum(dim=1, keepdim=True)


class PromptProjection(nn.Module):
    """Projects pooled text to the prompt's width and fuses it with the control vector.

    With text t and control c, both of variance 1, and w = `control_weight`, the prompt is the normalised
    (1 − w)·t + w·c for `mean`, or Linear([t, w·c]) for `concat-linear`.
    """

    def __init__(self, text_dim: int, prompt_dim: int, fuse: Fuse, control_weight: float) -> None:
        super().__init__()
        self.control_weight = control_weight
        self.text = nn.Sequential(
            nn.LayerNorm(text_dim),
            nn.Linear(text_dim, prompt_dim),
            nn.LayerNorm(prompt_dim, elementwise_affine=False),
        )
        self.mix = nn.Linear(2 * prompt_dim, prompt_dim) if fuse == "concat-linear" else None

    def forward(self, pooled: Float[Tensor, "B D"], control: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        """Give the prompts of B queries."""
        text, control = self.text(pooled), self.control_weight * control
        if self.mix is None:
            fused = (1 - self.control_weight) * text + control
        else:
            fused = self.mix(torch.cat([text, control], dim=-1))
        return F.layer_norm(fused, fused.shape[-1:])


class QwenHybridPrompt(nn.Module):
    """One prompt a query, from the text of its task and the features of its context pairs.

    The base model is frozen; LoRA adapters on its linear layers, the projection and the control MLP are trained, in
    float32. Padding must be on the right: the model is causal, so real tokens never see it and no mask is needed.

    Args:
        model: a Hub name, a local folder, or `embedded:tiny`.
        prompt_dim: width P of prompt and control vector.
        numeric_in_dim: number F of features.
        fuse: `mean` or `concat-linear`, see `PromptProjection`.
        control_weight: weight w of the control vector in the prompt, 0 to 1; at 0 its MLP is frozen.
        lora_r: rank of the adapters.
        lora_alpha: the adapters' output is multiplied by `lora_alpha / lora_r`.
        lora_dropout: dropout before the adapters.
        every: batches that a query's prompt serves; kept for the training step, see `PromptCache`.
        init: `random` builds the model from its configuration, without weights and without a download.
        dtype: precision of the frozen base, `bfloat16` or `float32`.
        lora_targets: names of linear layers, or `all-linear` alone.
        gradient_checkpointing: recompute the base's activations in the backward pass.
        seed: seed of all random weights; PyTorch's global random state is left as it was.
        sharding: how the frozen base is shared out over processes.

    Raises:
        ConfigError: no such model or LoRA target.
        PlatformError: the model's weights are not at hand.
    """

    def __init__(
        self,
        model: str = "Qwen/Qwen2.5-1.5B",
        prompt_dim: int = 256,
        numeric_in_dim: int = 15,
        fuse: Fuse = "mean",
        control_weight: float = 0.5,
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.0,
        every: int = 1,
        *,
        init: Literal["pretrained", "random"] = "pretrained",
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        lora_targets: tuple[str, ...] = ("all-linear",),
        gradient_checkpointing: bool = False,
        seed: int = 0,
        sharding: Sharding = UNSHARDED,
    ) -> None:
        super().__init__()
        self.every = every
        with _seeded(seed):
            self.body, self.tokenizer = load_body(model, init, getattr(torch, dtype), seed=seed, sharding=sharding)
        # Anew: how much was drawn for the base depends on where it came from.
        with _seeded(seed):
            lora = LoraConfig(
                r=lora_r,
                lora_alpha=lora_alpha,
                lora_dropout=lora_dropout,
                target_modules=_checked_targets(self.body, lora_targets, model),
            )
            inject_adapter_in_model(lora, self.body)
            self.prompt_projection = PromptProjection(self.body.config.hidden_size, prompt_dim, fuse, control_weight)
            self.control_mlp = nn.Sequential(
                nn.Linear(numeric_in_dim, prompt_dim),
                nn.GELU(),
                nn.Linear(prompt_dim, prompt_dim),
                nn.LayerNorm(prompt_dim, elementwise_affine=False),
            )
        self.control_mlp.requires_grad_(control_weight > 0)
        for parameter in self.trainable_parameters()["lora"]:
            parameter.data = parameter.data.float()  # PEFT gives them the base's precision
        if gradient_checkpointing:
            # The second name is the only one in transformers 5.17. The reentrant kind would give no gradient at all,
            # as the input of the first layer, frozen embeddings, needs none.
            name = "activation_checkpointing_enable"
            enable = getattr(self.body, name, None) or self.body.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.train()

    def forward(
        self, tokens: Int[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], features: Float[Tensor, "B F"]
    ) -> PromptOutput:
        """Give prompt and control vector of B queries, in float32 under any autocast.

        Args:
            tokens: ids of `tokenizer`, padded on the right.
            token_mask: True for real tokens, at least one a query.
            features: transformation features averaged over the context pairs.
        """
        hidden = self.body(input_ids=tokens, use_cache=False).last_hidden_state
        with torch.autocast(tokens.device.type, enabled=False):
            control = self.control_mlp(features)
            prompt = self.prompt_projection(mean_pool(hidden, token_mask), control)
        return PromptOutput(prompt, control)

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group: `lora`, `prompt_projection` and, unless its weight is 0, `control_mlp`."""
        parts = {"lora": self.body, "prompt_projection": self.prompt_projection, "control_mlp": self.control_mlp}
        groups = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        return {name: parameters for name, parameters in groups.items() if parameters}


def _checked_targets(body: PreTrainedModel, targets: tuple[str, ...], model: str) -> str | list[str]:
    """The targets as PEFT wants them; it would pass over a misspelt one without a word if another is right."""
    if targets == ("all-linear",):
        return "all-linear"
    layers = [name for name, module in body.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            choices = sorted({name.rpartition(".")[2] for name in layers})
            raise ConfigError(
                f"qwen.lora_targets names {target!r}, which is no linear layer of {model!r}: "
                f"choose among {', '.join(choices)}, or all-linear alone."
            )
    return list(targets)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a CPU stream of our own, so that the weights depend on the seed and on nothing drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
