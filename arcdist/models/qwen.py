"""Qwen with LoRA adapters: the prompt of each query, the cache of prompts, and the operations that reading takes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from arcdist.errors import ConfigError
from arcdist.models.qwen_source import UNSHARDED, Sharding, load_language_model, shape_of
from arcdist.models.qwen_writer import GridWriter, SymbolHead, lm_loss, with_outputs

# B queries, M of them without a prompt in the cache, L tokens, D width of Qwen, F features, P prompt, h w targets.

Fuse = Literal["mean", "concat-linear"]

_CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Keys of models whose logits are not what their head gives."""


class PromptOutput(NamedTuple):
    """What the grid modules get from Qwen for B queries; a tuple, so that every engine finds its tensors."""

    prompt: Float[Tensor, "B P"]
    """Components of mean 0 and variance 1 for each query."""
    control: Float[Tensor, "B P"]
    """The part that comes from the features, likewise normalised."""


class TeacherForcedOutput(NamedTuple):
    """What Qwen gives for B queries that it reads together with their outputs."""

    prompt: Float[Tensor, "B P"]
    control: Float[Tensor, "B P"]
    lm_loss: Float[Tensor, " B"]
    """Next-token loss of each output, see `arcdist.models.qwen_writer.lm_loss`."""


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
        """The prompts of B queries."""
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

    With `lm_weight` > 0 it also learns to write outputs. A pretrained model has its own LM head, which stays as it is;
    one of random weights gets a `SymbolHead`, which is trained.

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
        lm_weight: weight of the next-token loss in the training step; at 0 there is no LM head.
        init: `random` builds the model from its configuration, without weights and without a download.
        dtype: precision of the frozen base, `bfloat16` or `float32`.
        lora_targets: names of linear layers, or `all-linear` alone; in a mixture of experts not those of the experts.
        gradient_checkpointing: recompute the base's activations in the backward pass.
        seed: seed of all random weights; PyTorch's global random state is left as it was.
        sharding: how the frozen base is partitioned over processes.

    Raises:
        ConfigError: no such model or LoRA target, or a model that cannot be taught to write.
        PlatformError: the model's weights are not available.
    """

    symbol_ids: Tensor

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
        lm_weight: float = 0.0,
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
            source = load_language_model(model, init, getattr(torch, dtype), seed=seed, sharding=sharding)
        self.body, self.tokenizer = source.body, source.tokenizer
        # Seeded again: how much was drawn for the base depends on where it came from.
        with _seeded(seed):
            lora = LoraConfig(
                r=lora_r,
                lora_alpha=lora_alpha,
                lora_dropout=lora_dropout,
                target_modules=_checked_targets(self.body, lora_targets, model),
            )
            try:
                inject_adapter_in_model(lora, self.body)
            except ValueError as error:  # a kind of layer, or of model, that PEFT knows to go wrong
                raise ConfigError(f"PEFT puts no adapters on the qwen.lora_targets of {model!r}: {error}") from error
            self.prompt_projection = PromptProjection(self.body.config.hidden_size, prompt_dim, fuse, control_weight)
            self.control_mlp = nn.Sequential(
                nn.Linear(numeric_in_dim, prompt_dim),
                nn.GELU(),
                nn.Linear(prompt_dim, prompt_dim),
                nn.LayerNorm(prompt_dim, elementwise_affine=False),
            )
            self.lm_head = self._lm_head(source.head, model) if lm_weight > 0 else None
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

    def _lm_head(self, pretrained: nn.Module | None, model: str) -> nn.Module:
        self.tokenizer = self.tokenizer.leaving_room()
        symbol_ids, config = torch.from_numpy(self.tokenizer.symbol_ids), self.body.config
        self.register_buffer("symbol_ids", symbol_ids, persistent=False)
        if pretrained is not None:
            for name in _CHANGES_LOGITS:
                if getattr(config, name, None) not in (None, 1):
                    raise ConfigError(
                        f"qwen.lm_weight is more than 0, but {model!r} changes the logits of its head ({name} in "
                        f"config.json), which is not supported: choose another model, or --qwen.lm_weight 0."
                    )
            return pretrained.requires_grad_(False)
        return SymbolHead(config.hidden_size, symbol_ids, getattr(config, "initializer_range", 0.02))

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        features: Float[Tensor, "B F"],
        target: Int[Tensor, "B h w"] | None = None,
        target_size: Int[Tensor, "B 2"] | None = None,
    ) -> PromptOutput | TeacherForcedOutput:
        """Prompt and control vector of B queries, in float32 under any autocast.

        With targets, which takes an LM head, also the next-token loss of each as the output that follows the prompt.
        The prompt does not depend on them: no token sees a later one, and only the prompt's own tokens are averaged.

        Args:
            tokens: ids of `tokenizer`, padded on the right.
            token_mask: True for real tokens, at least one a query.
            features: transformation features averaged over the context pairs.
            target: top left on a canvas, as in `QueryTargets`.
            target_size: height and width of each; zeros if it is not known.
        """
        texts, output_mask = tokens, torch.zeros_like(token_mask)
        if target is not None and target_size is not None:
            texts, output_mask = with_outputs(tokens, token_mask, target, target_size, self.symbol_ids)
        hidden = self.body(input_ids=texts, use_cache=False).last_hidden_state
        with torch.autocast(tokens.device.type, enabled=False):
            control = self.control_mlp(features)
            prompt = self.prompt_projection(mean_pool(hidden[:, : tokens.shape[1]], token_mask), control)
        if target is None:
            return PromptOutput(prompt, control)
        assert self.lm_head is not None
        return TeacherForcedOutput(prompt, control, lm_loss(self.lm_head, hidden, texts, output_mask))

    def writer(self, *, rows: int = 64) -> GridWriter:
        """What writes and scores outputs; there must be an LM head (`lm_weight` > 0).

        Args:
            rows: most texts whose keys and values are held at once.
        """
        assert self.lm_head is not None
        return GridWriter(self.body, self.lm_head, self.tokenizer, rows=rows)

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group: `lora`, `prompt_projection`, and `control_mlp` and `lm_head` if they are."""
        parts = {"lora": self.body, "prompt_projection": self.prompt_projection, "control_mlp": self.control_mlp}
        if self.lm_head is not None:
            parts["lm_head"] = self.lm_head
        groups = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        return {name: parameters for name, parameters in groups.items() if parameters}


_OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "shared_expert_gate", "w1", "w2", "w3")
"""Layers of a mixture of experts, by their last names. PEFT takes most of them for the experts themselves."""
_IN_EXPERTS = ".experts."
"""Part of the names of an expert's weights, which a token meets only if it is sent to that expert."""


def _checked_targets(body: PreTrainedModel, targets: tuple[str, ...], model: str) -> str | list[str]:
    """The targets as PEFT takes them; it would silently ignore a misspelt one if another is right."""
    layers = [name for name, module in body.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    note = ""
    if any(_IN_EXPERTS in name for name, _ in body.named_parameters()):
        layers = [name for name in layers if name.rpartition(".")[2] not in _OF_EXPERTS]
        note = " Experts and their routers get no adapters."
    choices = sorted({name.rpartition(".")[2] for name in layers})
    if targets == ("all-linear",):
        return choices if note else "all-linear"
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ConfigError(
                f"qwen.lora_targets names {target!r}, which is no linear layer of {model!r}: "
                f"choose among {', '.join(choices)}, or all-linear alone.{note}"
            )
    return list(targets)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a separate CPU stream, so that the weights depend on the seed and on nothing drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@dataclass(frozen=True, slots=True)
class CachedPrompts:
    """What the cache knows of B queries."""

    output: PromptOutput
    """Prompts and control vectors, without gradient; zeros for the queries in `missing`."""
    missing: Int[Tensor, " M"]
    """Rows of the queries whose prompt must be computed, on the prompts' device."""

    def fill(self, computed: PromptOutput) -> PromptOutput:
        """Put the M computed prompts into their rows; their gradient flows, the cached rows have none."""
        return PromptOutput(
            *(cached.index_copy(0, self.missing, rows) for cached, rows in zip(self.output, computed, strict=True))
        )


class PromptCache:
    """Holds the prompts of queries, each good for `every` batches from the one it was computed in.

    Args:
        every: batches that a prompt serves, at least 1; 1 means that each batch computes its own.
        prompt_dim: width P of prompt and control vector.
        device: of the prompts.
    """

    def __init__(self, every: int, prompt_dim: int, device: torch.device) -> None:
        self._every = every
        self._absent = torch.zeros(2, prompt_dim, device=device)
        self._rows: dict[str, tuple[int, Float[Tensor, "2 P"]]] = {}

    def lookup(self, ids: Sequence[str], batch_number: int) -> CachedPrompts:
        """The prompts of these queries that are still good in this batch."""
        rows, missing = [], []
        for index, query_id in enumerate(ids):
            if self._holds(query_id, batch_number):
                rows.append(self._rows[query_id][1])
            else:
                missing.append(index)
                rows.append(self._absent)
        prompt, control = torch.stack(rows, dim=1)
        return CachedPrompts(PromptOutput(prompt, control), torch.tensor(missing, dtype=torch.int64).to(prompt.device))

    def holds_all(self, ids: Sequence[str], batch_number: int) -> bool:
        """Whether the prompts of all these queries are still good in this batch."""
        return all(self._holds(query_id, batch_number) for query_id in ids)

    def store(self, ids: Sequence[str], output: PromptOutput, batch_number: int) -> None:
        """Keep the prompts that were computed in this batch; a query whose prompt is still good keeps that one."""
        rows = torch.stack([output.prompt.detach(), output.control.detach()], dim=1)
        self._rows |= {
            query_id: (batch_number, row)
            for query_id, row in zip(ids, rows, strict=True)
            if not self._holds(query_id, batch_number)
        }

    def state(self) -> tuple[dict[str, int], dict[str, Float[Tensor, "2 P"]]]:
        """The batch that each kept prompt was computed in, and the prompts, on the CPU; both by query."""
        batches = {query_id: batch for query_id, (batch, _) in self._rows.items()}
        return batches, {query_id: row.cpu().clone() for query_id, (_, row) in self._rows.items()}

    def load_state(self, batches: Mapping[str, int], rows: Mapping[str, Float[Tensor, "2 P"]]) -> None:
        """Replace all kept prompts by those of `state()`."""
        self._rows = {query_id: (batch, rows[query_id].to(self._absent)) for query_id, batch in batches.items()}

    def _holds(self, query_id: str, batch_number: int) -> bool:
        return query_id in self._rows and batch_number - self._rows[query_id][0] < self._every


class Work(NamedTuple):
    """What a model does with a token of a text."""

    weights: int
    """Weights that it is multiplied with: of all linear maps, of its share of the experts, of routers, convolutions."""
    states: int
    """Numbers in the states of linear attention, over all layers."""
    width: int
    """Width of the queries of softmax attention, over all layers."""


def work_of(config: PretrainedConfig) -> Work:
    """What a model of that configuration does with a token, counted on the model itself, without its numbers."""
    body = shape_of(config)
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next(filter(None, (getattr(config, name, None) for name in counts)), 1)
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    embeddings = {id(module.weight) for module in body.modules() if isinstance(module, nn.Embedding)}
    weights = 0
    for name, parameter in body.named_parameters():
        if _IN_EXPERTS in name:
            weights += parameter.numel() * chosen // experts
        elif parameter.ndim > 1 and id(parameter) not in embeddings:
            weights += parameter.numel()
    heads = getattr(config, "num_attention_heads", 0)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // (heads or 1)
    linear = (getattr(config, "layer_types", None) or []).count("linear_attention")
    state = 0
    if linear:
        state = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    return Work(weights, linear * state, (config.num_hidden_layers - linear) * heads * head_width)


def _token_and_position(work: Work) -> tuple[float, float]:
    """Operations of the frozen model for a token, and for a token and a position of its text."""
    return 4.0 * work.weights + 18.0 * work.states, 6.0 * work.width


def attention_share(config: PretrainedConfig) -> float:
    """Operations of attention for a token and a position over all others for a token; see `training_flops`."""
    token, position = _token_and_position(work_of(config))
    return position / token


def training_flops(config: PretrainedConfig, adapter_weights: int, lengths: Iterable[int]) -> float:
    """Operations of reading texts of these lengths (in tokens) and training the adapters on them.

    With N the weights that a token is multiplied with, P those of the adapters, d the width of the queries and S the
    numbers of the states of linear attention, d and S over all layers that have them, a token of a text of s tokens
    takes 4 N + 6 P + 6 s d + 18 S: frozen weights have a forward pass and the gradient of their inputs, 2 N each;
    adapters also have a gradient themselves; attention looks back on half of the text on average; a state is decayed
    and read, corrected and read, 6 S, and each product has two gradients. What is computed twice to save memory counts
    once. Embeddings do not count, and an LM head is `writing_flops`.
    """
    token, position = _token_and_position(work_of(config))
    return sum((length * (token + 6.0 * adapter_weights + position * length) for length in lengths), 0.0)


def writing_flops(head_weights: int, tokens: int, *, is_trained: bool) -> float:
    """Operations of an LM head that gives the next-token loss of so many tokens, and its gradient.

    With N weights, a token takes 2 N for its logits and 2 N for the gradient of the hidden state; a head that is
    trained itself has 2 N more.
    """
    return (6.0 if is_trained else 4.0) * head_weights * tokens
