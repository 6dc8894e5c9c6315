"""What arcdist asks of a language model, of each family of today's Qwen: experts and linear attention among them."""

import re

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from shared.families import FAMILIES
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from arcdist.errors import ConfigError
from arcdist.models import training_flops
from arcdist.models.qwen import QwenHybridPrompt, work_of
from arcdist.models.qwen_source import random_body

P = 16
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ADAPTED = {
    "qwen3": ATTENTION | MLP,
    "qwen3_moe": ATTENTION,
    "qwen3_next": ATTENTION | {"in_proj_qkvz", "in_proj_ba", "out_proj"},
    "qwen3_5": ATTENTION | MLP | {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"},
    "qwen3_5_moe": ATTENTION | {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"},
}


WITH_EXPERTS = ["qwen3_moe", "qwen3_next", "qwen3_5_moe"]


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model's folder with its configuration only."""
    folder = tmp_path_factory.mktemp(family)
    FAMILIES[family].save_pretrained(folder)
    return str(folder)


def build(folder: str, **options: object) -> QwenHybridPrompt:
    """The prompt of a random model whose adapters have an effect."""
    module = QwenHybridPrompt(folder, **{"prompt_dim": P, "dtype": "float32", "init": "random"} | options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.trainable_parameters()["lora"]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def batch(*lengths: int, padded_to: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries whose content depends on their row only; padding is noise."""
    tokens = torch.stack([torch.arange(padded_to) * (row + 3) % 13 for row in range(len(lengths))])
    mask = torch.arange(padded_to) < torch.tensor(lengths)[:, None]
    features = torch.linspace(-1, 1, 15) * torch.arange(1, len(lengths) + 1)[:, None]
    return tokens.where(mask, torch.arange(padded_to) % 10), mask, features


# Linear attention works through chunks of 64 tokens: both texts and their padding end within one and in another.
@pytest.mark.parametrize("padded_to", [71, 64, 150])
def test_prompt_does_not_depend_on_padding_or_the_rest_of_the_batch(folder: str, padded_to: int) -> None:
    module = build(folder)
    with torch.no_grad():
        together = module(*batch(9, 64, padded_to=padded_to)).prompt
        alone = module(*batch(9, padded_to=9)).prompt
        other = module(*(rows[1:] for rows in batch(9, 64, padded_to=64))).prompt
    torch.testing.assert_close(together, torch.cat([alone, other]), rtol=0, atol=1e-5)
    assert (alone - other).abs().max() > 0.1


def gradients(module: QwenHybridPrompt) -> dict[str, Tensor]:
    (module(*batch(9, 70, padded_to=70)).prompt * torch.linspace(-1, 1, P)).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad and p.grad is not None}


def test_gradient_reaches_every_adapter_and_is_the_same_with_checkpointing(family: str, folder: str) -> None:
    module = build(folder)
    plain = gradients(module)
    adapted = [name for name, layer in module.body.named_modules() if hasattr(layer, "lora_A")]
    assert {name.rpartition(".")[2] for name in adapted} == ADAPTED[family]
    for name in adapted:
        for half in ("lora_A", "lora_B"):
            assert plain[f"body.{name}.{half}.default.weight"].abs().max() > 0, name
    assert not any(p.requires_grad for name, p in module.body.named_parameters() if "lora_" not in name)

    checkpointed = build(folder, gradient_checkpointing=True)
    calls: list[int] = []
    for number, layer in enumerate(checkpointed.body.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    again = gradients(checkpointed)
    assert sorted(calls) == [0, 0, 1, 1]
    assert again.keys() == plain.keys()
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)


def test_a_bfloat16_base_under_autocast_is_near_the_float32_one(folder: str) -> None:
    whole, half = build(folder), build(folder, dtype="bfloat16")
    with torch.no_grad():
        expected = whole(*batch(9, 70, padded_to=70)).prompt
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prompt = half(*batch(9, 70, padded_to=70)).prompt
    assert prompt.dtype == torch.float32
    assert F.cosine_similarity(prompt, expected).min() > 0.9
    (prompt * torch.linspace(-1, 1, P)).sum().backward()
    for parameter in half.trainable_parameters()["lora"]:
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_peft_puts_an_export_s_adapters_on_the_same_layers(family: str, folder: str) -> None:
    """PEFT has rules of its own for the names of experts' layers."""
    ours = build(folder).body
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=sorted(ADAPTED[family]))
    theirs = inject_adapter_in_model(lora, random_body(FAMILIES[family], torch.float32))
    names = [[name for name, _ in body.named_parameters() if "lora_" in name] for body in (ours, theirs)]
    assert names[0] == names[1]


@pytest.mark.parametrize("family", WITH_EXPERTS, indirect=True)
@pytest.mark.parametrize("target", ["gate_proj", "down_proj", "gate", "gate_up_proj", "experts", "shared_expert_gate"])
def test_adapters_on_experts_are_refused(family: str, folder: str, target: str) -> None:
    message = (
        f"qwen.lora_targets names {target!r}, which is no linear layer of {folder!r}: choose among "
        f"{', '.join(sorted(ADAPTED[family]))}, or all-linear alone. Experts and their routers get no adapters."
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(folder, lora_targets=("q_proj", target))


def test_first_weights_depend_on_the_seed_alone_and_leave_norms_without_effect(family: str) -> None:
    torch.manual_seed(3)
    first = random_body(FAMILIES[family], torch.float32, seed=5)
    torch.rand(7)
    second = dict(random_body(FAMILIES[family], torch.float32, seed=5).named_parameters())
    for name, value in first.named_parameters():
        assert torch.equal(value, second[name]), name
        if value.ndim > 1:
            assert value.std().item() == pytest.approx(0.2, rel=5 / value.numel() ** 0.5), name
    norms = [module for name, module in first.named_modules() if name.endswith("norm")]
    assert len(norms) >= 5
    for norm in norms:
        ones = torch.ones(1, norm.weight.numel())
        gate = (torch.full_like(ones, 1.2784645),) if "Gated" in type(norm).__name__ else ()  # SiLU gives 1
        torch.testing.assert_close(norm(ones, *gate), ones, rtol=0, atol=1e-5)


def test_operations_are_those_of_a_forward_pass(family: str) -> None:
    config, tokens = FAMILIES[family], torch.arange(20)[None] % 13
    work, body = work_of(config), random_body(config, torch.float32)
    # In implementations whose products can be counted.
    body.set_attn_implementation("eager")
    body.config._experts_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(input_ids=tokens, use_cache=False)
    counted = {str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(p.numel() for name, p in body.named_parameters() if "conv1d" in name)
    assert counted["aten.mm"] == 2 * 20 * (work.weights - convolutions)
    is_linear = "linear_attention" in (getattr(config, "layer_types", None) or ())
    assert (work.states, work.width) == ((4 * 8 * 8, 2 * 24) if is_linear else (0, 2 * 2 * 24))
    if not is_linear:
        # Of which half is masked; in some versions of transformers the angles of positions are a product too.
        assert counted["aten.bmm"] == pytest.approx(2 * 2 * 20**2 * work.width, rel=0.01)
    expected = 20 * (4 * work.weights + 6 * 7 + 6 * 20 * work.width + 18 * work.states)
    assert training_flops(config, 7, [20]) == expected


def test_every_expert_is_there_however_few_a_token_meets(family: str, folder: str) -> None:
    module = build(folder)
    whole = sum(p.numel() for p in random_body(FAMILIES[family], torch.float32).parameters())
    assert sum(p.numel() for name, p in module.body.named_parameters() if "lora_" not in name) == whole
    experts = [p for name, p in module.body.named_parameters() if ".experts." in name]
    assert sum(p.numel() for p in experts) == (2 * 4 * 3 * 32 * 16 if family in WITH_EXPERTS else 0)
    assert not any(p.requires_grad for p in experts)
