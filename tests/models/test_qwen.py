"""Qwen's prompt, the cache that keeps it for `every` batches, and the operations that reading takes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from arcdist.config.schema import QwenConfig
from arcdist.engine.base import trained_state
from arcdist.errors import ConfigError
from arcdist.models import attention_share, training_flops, writing_flops
from arcdist.models.qwen import PromptCache, PromptOutput, PromptProjection, QwenHybridPrompt, mean_pool, work_of
from arcdist.models.qwen_source import TINY, embedded_config

CONFIG = Qwen2Config(
    vocab_size=8,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=3,
    num_key_value_heads=1,
)


def test_weights_are_those_of_the_linear_maps():
    counted = sum(module.weight.numel() for module in Qwen2Model(CONFIG).modules() if isinstance(module, nn.Linear))
    assert work_of(CONFIG) == (counted, 0, 3 * 12)
    assert counted == 3 * (2 * 12 * (12 + 4) + 3 * 12 * 20)


def test_operations_by_hand():
    weights = work_of(CONFIG).weights
    token = 4 * weights + 6 * 7
    assert training_flops(CONFIG, 7, [2, 5]) == 7 * token + 6 * 12 * 3 * (4 + 25)
    assert attention_share(CONFIG) == pytest.approx(6 * 12 * 3 / (4 * weights))
    assert writing_flops(96, 10, is_trained=False) == 4 * 96 * 10
    assert writing_flops(96, 10, is_trained=True) == 6 * 96 * 10


def test_the_published_numbers_of_qwen_1_5b():
    config = embedded_config("Qwen/Qwen2.5-1.5B")
    assert work_of(config).weights == pytest.approx(1.310e9, rel=1e-3)
    # 5.7 GFLOP a token at 1.5 k tokens, adapters of rank 16 included.
    assert training_flops(config, 18_464_768, [1500]) / 1500 == pytest.approx(5.7e9, rel=0.02)


P = 16


def build(**options: object) -> QwenHybridPrompt:
    return QwenHybridPrompt(TINY, **{"prompt_dim": P, "dtype": "float32"} | options)


def batch(*lengths: int, padded_to: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries whose content depends on their row only."""
    width = padded_to or max(lengths)
    tokens = torch.stack([torch.arange(width) * (row + 3) % 13 for row in range(len(lengths))])
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    features = torch.linspace(-1, 1, 15) * torch.arange(1, len(lengths) + 1)[:, None]
    return tokens.where(mask, 13), mask, features


def shake(module: QwenHybridPrompt) -> QwenHybridPrompt:
    """Give the adapters, zero at the start, an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.trainable_parameters()["lora"]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def loss(module: QwenHybridPrompt, *inputs: Tensor) -> Tensor:
    prompt, _ = module(*inputs)
    return (prompt * torch.linspace(-1, 1, P)).sum()


def test_mean_pool_by_hand() -> None:
    hidden = torch.tensor([[[2.0, 4.0], [4.0, 0.0], [9.0, 9.0]], [[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert mean_pool(hidden, mask).tolist() == [[3.0, 2.0], [1.0, 2.0]]


def test_mean_pool_sums_in_float32() -> None:
    hidden = torch.ones(1, 1000, 1, dtype=torch.bfloat16)  # bfloat16 counts to 256 only
    pooled = mean_pool(hidden, torch.ones(1, 1000, dtype=torch.bool))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 1.0


def test_prompt_and_control_are_normalised() -> None:
    output = build()(*batch(9, 5))
    for vector in output:
        assert vector.shape == (2, P)
        assert vector.mean(dim=1).tolist() == pytest.approx([0, 0], abs=1e-6)
        assert vector.var(dim=1, unbiased=False).tolist() == pytest.approx([1, 1], abs=1e-2)


@pytest.mark.parametrize("fuse", ["mean", "concat-linear"])
def test_gradient_reaches_each_group_and_not_the_base(fuse: str) -> None:
    module = build(fuse=fuse)
    loss(module, *batch(9, 5)).backward()
    groups = module.trainable_parameters()
    assert list(groups) == ["lora", "prompt_projection", "control_mlp"]
    for parameters in groups.values():
        assert all(parameter.grad is not None for parameter in parameters)
        assert sum(parameter.grad.abs().sum() for parameter in parameters) > 0
    trained = {id(parameter) for parameters in groups.values() for parameter in parameters}
    assert trained == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    base = {name: p for name, p in module.body.named_parameters() if "lora_" not in name}
    assert len(base) == 1 + 12 + 1  # embedding, layer, norm
    assert all(not p.requires_grad and p.grad is None for p in base.values())


def test_adapter_on_every_linear_layer() -> None:
    module = build(lora_r=4, lora_alpha=32)
    adapted = [layer for layer in module.body.modules() if hasattr(layer, "lora_A")]
    assert len(adapted) == 7
    assert {layer.scaling["default"] for layer in adapted} == {8.0}
    assert {layer.lora_A["default"].out_features for layer in adapted} == {4}


def test_named_targets_only() -> None:
    module = build(lora_targets=("q_proj", "layers.0.mlp.down_proj"))
    adapted = [name for name, layer in module.body.named_modules() if hasattr(layer, "lora_A")]
    assert adapted == ["layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"]


@pytest.mark.parametrize("targets", [("q_proj", "query"), ("query", "all-linear")])
def test_target_that_does_not_exist(targets: tuple[str, ...]) -> None:
    choices = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or all-linear alone"
    with pytest.raises(ConfigError, match=f"'query'.*'embedded:tiny': choose among {choices}"):
        build(lora_targets=targets)


def test_layers_that_peft_gives_no_adapters(tmp_path: Path) -> None:
    MambaConfig(vocab_size=14, hidden_size=8, num_hidden_layers=1, state_size=4).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"PEFT puts no adapters on the qwen.lora_targets of '{tmp_path}'.*out_proj"):
        QwenHybridPrompt(str(tmp_path), init="random")


def test_prompt_does_not_depend_on_padding() -> None:
    module = shake(build())
    tokens, mask, features = batch(9, 5)
    padded, padded_mask, _ = batch(9, 5, padded_to=40)
    noise = padded.where(padded_mask, torch.arange(40) % 10)
    expected = module(tokens, mask, features)
    for candidate in (padded, noise):
        torch.testing.assert_close(module(candidate, padded_mask, features), expected, rtol=0, atol=1e-5)


def test_prompt_does_not_depend_on_the_rest_of_the_batch() -> None:
    module = shake(build())
    tokens, mask, features = batch(9, 5, 7)
    together = module(tokens, mask, features)
    alone = module(tokens[1:2, :5], mask[1:2, :5], features[1:2])
    torch.testing.assert_close(alone.prompt[0], together.prompt[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.control[0], together.control[1], rtol=0, atol=1e-5)


def test_prompt_depends_on_each_token_and_on_the_features() -> None:
    module = build()
    tokens, mask, features = batch(9)
    prompt = module(tokens, mask, features).prompt
    for position in range(9):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 10
        assert (module(changed, mask, features).prompt - prompt).abs().max() > 1e-3
    assert (module(tokens, mask, features + 1).prompt - prompt).abs().max() > 1e-3


def test_fuse_mean_by_hand() -> None:
    projection = PromptProjection(text_dim=4, prompt_dim=P, fuse="mean", control_weight=0.25)
    pooled, control = torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.linspace(-1, 2, P)[None]
    fused = 0.75 * projection.text(pooled) + 0.25 * control
    expected = (fused - fused.mean()) / (fused.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(projection(pooled, control), expected)


def test_fuse_concat_linear_by_hand() -> None:
    projection = PromptProjection(text_dim=4, prompt_dim=P, fuse="concat-linear", control_weight=0.25)
    pooled, control = torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.linspace(-1, 2, P)[None]
    text_weight, control_weight = projection.mix.weight.split(P, dim=1)
    fused = projection.text(pooled) @ text_weight.T + 0.25 * control @ control_weight.T + projection.mix.bias
    torch.testing.assert_close(projection(pooled, control), F.layer_norm(fused, (P,)))


def test_control_of_no_weight_is_not_trained() -> None:
    module = build(control_weight=0.0)
    assert list(module.trainable_parameters()) == ["lora", "prompt_projection"]
    assert not any(parameter.requires_grad for parameter in module.control_mlp.parameters())
    tokens, mask, features = batch(9)
    assert torch.equal(module(tokens, mask, features).prompt, module(tokens, mask, features + 1).prompt)


def test_text_of_no_weight_is_refused_by_the_configuration() -> None:
    with pytest.raises(ConfigError, match="no share of Qwen's text"):
        QwenConfig(control_weight=1.0)
    assert QwenConfig(control_weight=1.0, fuse="concat-linear").control_weight == 1.0


def test_weights_depend_on_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = build(seed=7), build(seed=8)
    for (name, parameter), (_, same) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(parameter, same), name
    matrices = [(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True) if p.dim() > 1]
    equal = [torch.equal(p, q) for p, q in matrices]
    assert sum(equal) == 7  # each adapter's B starts at zero


def test_bfloat16_base_with_float32_adapters() -> None:
    module = build(dtype="bfloat16")
    dtypes = {name: parameter.dtype for name, parameter in module.body.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    output = module(*batch(9, 5))
    loss(module, *batch(9, 5)).backward()
    assert {vector.dtype for vector in output} == {torch.float32}
    assert {parameter.grad.dtype for parameter in module.trainable_parameters()["lora"]} == {torch.float32}


def test_float32_output_under_autocast() -> None:
    module = build()
    plain = module(*batch(9, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(*batch(9, 5))
    assert mixed.prompt.dtype == torch.float32
    assert torch.equal(mixed.control, plain.control)
    torch.testing.assert_close(mixed.prompt, plain.prompt, rtol=0, atol=0.1)


def gradients(module: QwenHybridPrompt) -> list[Tensor]:
    loss(module, *batch(9, 5)).backward()
    return [parameter.grad for parameters in module.trainable_parameters().values() for parameter in parameters]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    checkpointed = shake(build(gradient_checkpointing=True))
    recomputed = count_calls(checkpointed.body.layers[0].mlp)
    for ours, theirs in zip(gradients(checkpointed), gradients(shake(build())), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert recomputed() == 2


def count_calls(module: nn.Module) -> Callable[[], int]:
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return lambda: len(calls)


def test_dropout_acts_in_training_only() -> None:
    module = shake(build(lora_dropout=0.5))
    assert not torch.equal(module(*batch(9)).prompt, module(*batch(9)).prompt)
    module.eval()
    assert torch.equal(module(*batch(9)).prompt, module(*batch(9)).prompt)


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """Number of all parameters and of the trained ones."""
    return sum(p.numel() for p in module.parameters()), sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_parameter_counts_by_hand() -> None:
    layer = 3 * (32 * 32 + 32) + 32 * 32 + 3 * 32 * 64 + 2 * 32
    base = 14 * 32 + layer + 32
    lora = 4 * (4 * (32 + 32) + 3 * (32 + 64))
    projection = 2 * 32 + 32 * P + P
    control = 15 * P + P + P * P + P
    trained = lora + projection + control
    assert parameter_counts(build(lora_r=4)) == (base + trained, trained)


def test_random_qwen_of_a_real_size_reads_grid_tokens() -> None:
    with torch.device("meta"):
        module = QwenHybridPrompt(init="random", lora_targets=("q_proj",))
    total, trained = parameter_counts(module)
    assert total - trained == 1_543_714_304
    assert module.tokenizer.vocab_size == 14


TARGET = torch.tensor([[[3, 1, 4], [1, 5, 9]], [[2, -1, -1], [6, -1, -1]]])
SIZES = torch.tensor([[2, 3], [2, 1]])
LONGEST_OUTPUT = 30 * 31 + 1


def pretrained_folder(folder: Path, *, tied: bool) -> str:
    """A model with its LM head, and a tokenizer whose symbols have other numbers than arcdist's own."""
    config = Qwen2Config(**embedded_config(TINY).to_dict() | {"tie_word_embeddings": tied, "initializer_range": 0.3})
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = ["<|endoftext|>", "O", "I", "Ċ", *"9876543210"]
    tokenizer = Tokenizer(BPE({word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)
    return str(folder)


def test_without_a_weight_there_is_no_lm_head() -> None:
    module = build()
    assert module.lm_head is None
    assert "lm_head" not in module.trainable_parameters()
    with pytest.raises(AssertionError):
        module.writer()


def test_random_weights_learn_a_head_and_are_otherwise_the_same() -> None:
    plain, writing = shake(build()), shake(build(lm_weight=0.5))
    assert list(writing.trainable_parameters()) == ["lora", "prompt_projection", "control_mlp", "lm_head"]
    assert [parameter.shape for parameter in writing.trainable_parameters()["lm_head"]] == [(12, 32)]
    known = dict(writing.named_parameters())
    assert {*known} - {name for name, _ in plain.named_parameters()} == {"lm_head.rows.weight"}
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, known[name]), name
    for ours, theirs in zip(writing(*batch(9, 5)), plain(*batch(9, 5)), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(
        known["lm_head.rows.weight"], dict(build(lm_weight=2.0).named_parameters())["lm_head.rows.weight"]
    )
    assert (plain.tokenizer.max_tokens, writing.tokenizer.max_tokens) == (32_768, 32_768 - LONGEST_OUTPUT)


@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_head_stays_as_it_is(tmp_path: Path, tied: bool) -> None:
    folder = pretrained_folder(tmp_path / "model", tied=tied)
    module = QwenHybridPrompt(folder, prompt_dim=P, dtype="float32", lm_weight=1.0)
    causal_lm = AutoModelForCausalLM.from_pretrained(folder)
    assert list(module.trainable_parameters()) == ["lora", "prompt_projection", "control_mlp"]
    assert torch.equal(module.lm_head.weight, causal_lm.lm_head.weight)
    assert (module.lm_head.weight is module.body.embed_tokens.weight) == tied
    # Neither under its own name nor under the embedding's is it part of a checkpoint.
    kept = trained_state(module)
    assert not [name for name in kept if "lora_" not in name and not name.startswith(("prompt_", "control_"))]

    tokens, mask, features = batch(9, 5)
    loss = module(tokens, mask, features, TARGET, SIZES).lm_loss
    ids = module.tokenizer.symbol_ids
    for query, (length, output) in enumerate([(9, [3, 1, 4, 10, 1, 5, 9, 10, 11]), (5, [2, 10, 6, 10, 11])]):
        text = torch.cat([tokens[query, :length], torch.from_numpy(ids[output])])
        logits = causal_lm(text[None], use_cache=False).logits[0, length - 1 : -1]
        assert loss[query].item() == pytest.approx(F.cross_entropy(logits, text[length:]).item(), abs=1e-5)


@pytest.mark.parametrize("fields", [{"logits_scaling": 2.0}, {"logits_scaling": 1.0}])
def test_a_model_that_changes_its_logits_is_not_taught(tmp_path: Path, fields: dict[str, float]) -> None:
    folder = pretrained_folder(tmp_path / "model", tied=True)
    known = embedded_config(TINY).to_dict()
    sizes = {name: known[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    GraniteForCausalLM(GraniteConfig(**sizes, num_attention_heads=2, **fields)).save_pretrained(folder)
    if fields["logits_scaling"] == 1:
        assert QwenHybridPrompt(folder, dtype="float32", lm_weight=1.0).lm_head is not None
        return
    with pytest.raises(ConfigError) as raised:
        QwenHybridPrompt(folder, dtype="float32", lm_weight=1.0)
    assert str(raised.value) == (
        f"qwen.lm_weight is more than 0, but {folder!r} changes the logits of its head (logits_scaling in "
        f"config.json), which is not supported: choose another model, or --qwen.lm_weight 0."
    )
    assert QwenHybridPrompt(folder, dtype="float32").lm_head is None


def test_the_prompt_does_not_depend_on_the_output() -> None:
    module = shake(build(lm_weight=1.0))
    inputs = batch(9, 5)
    alone = module(*inputs)
    lesson = module(*inputs, TARGET, SIZES)
    other = module(*inputs, (TARGET + 1) % 10, SIZES)
    for candidate in (lesson, other):
        torch.testing.assert_close(candidate.prompt, alone.prompt, rtol=0, atol=1e-5)
        torch.testing.assert_close(candidate.control, alone.control, rtol=0, atol=1e-5)
    assert (lesson.lm_loss - other.lm_loss).abs().min() > 1e-3
    # Neither the outputs' padding nor the rest of the batch has a part in a query's loss.
    wider = F.pad(TARGET, (0, 4, 0, 2), value=-1)
    torch.testing.assert_close(module(*inputs, wider, SIZES).lm_loss, lesson.lm_loss, rtol=0, atol=1e-5)
    second = [part[1:] for part in (*inputs, TARGET, SIZES)]
    torch.testing.assert_close(module(*second).lm_loss, lesson.lm_loss[1:], rtol=0, atol=1e-5)


def test_the_loss_teaches_adapters_and_head() -> None:
    module = shake(build(lm_weight=1.0))
    module(*batch(9, 5), TARGET, SIZES).lm_loss.mean().backward()
    norms = {name: sum(p.grad.norm() for p in group if p.grad is not None) for name, group in groups_of(module)}
    assert norms["lora"] > 0
    assert norms["lm_head"] > 0
    assert (norms["prompt_projection"], norms["control_mlp"]) == (0, 0)


def groups_of(module: QwenHybridPrompt) -> Iterable[tuple[str, list[nn.Parameter]]]:
    return module.trainable_parameters().items()


def test_what_was_taught_is_what_is_scored() -> None:
    module = shake(build(lm_weight=1.0, lora_dropout=0.5)).eval()
    tokens, mask, features = batch(9, 5)
    loss = module(tokens, mask, features, TARGET, SIZES).lm_loss
    grids = [[TARGET[0].numpy().astype(np.uint8)], [TARGET[1, :, :1].numpy().astype(np.uint8)]]
    found = module.train().writer().log_prob(tokens, mask, grids)
    assert [-found[0][0] / 9, -found[1][0] / 5] == pytest.approx(loss.tolist(), abs=1e-5)


CPU = torch.device("cpu")


def output(*values: float, requires_grad: bool = False) -> PromptOutput:
    prompt = torch.tensor([[value, value] for value in values], requires_grad=requires_grad)
    return PromptOutput(prompt, -prompt)


def first(prompts: Tensor) -> list[float]:
    return prompts[:, 0].tolist()


def test_prompt_serves_every_batches() -> None:
    cache = PromptCache(every=3, prompt_dim=2, device=CPU)
    assert cache.lookup(["a", "b"], 5).missing.tolist() == [0, 1]
    cache.store(["a", "b"], output(1.0, 2.0), 5)
    for batch_number in (6, 7):
        cached = cache.lookup(["b", "a", "c"], batch_number)
        assert cached.missing.tolist() == [2]
        assert first(cached.output.prompt) == [2.0, 1.0, 0.0]
        assert first(cached.output.control) == [-2.0, -1.0, 0.0]
    cached = cache.lookup(["b", "a"], 8)
    assert cached.missing.tolist() == [0, 1]
    assert first(cached.output.prompt) == [0.0, 0.0]


def test_every_batch_computes_its_own_prompts_by_default() -> None:
    cache = PromptCache(every=1, prompt_dim=2, device=CPU)
    cache.store(["a"], output(1.0), 0)
    assert cache.lookup(["a"], 1).missing.tolist() == [0]


def test_a_task_named_twice_keeps_its_last_prompt() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    cache.store(["a", "a"], output(1.0, 2.0), 0)
    assert first(cache.lookup(["a"], 1).output.prompt) == [2.0]


def test_gradient_reaches_computed_rows_only() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    stored = output(1.0, requires_grad=True)
    cache.store(["a"], stored, 0)
    cached = cache.lookup(["b", "a"], 1)
    assert not cached.output.prompt.requires_grad
    computed = output(7.0, requires_grad=True)
    whole = cached.fill(computed)
    assert first(whole.prompt) == [7.0, 1.0]
    assert first(whole.control) == [-7.0, -1.0]
    whole.prompt.sum().backward()
    assert computed.prompt.grad is not None
    assert computed.prompt.grad.tolist() == [[1.0, 1.0]]
    assert stored.prompt.grad is None


def test_a_batch_without_missing_prompts() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    cache.store(["a"], output(1.0), 0)
    assert cache.lookup(["a"], 1).missing.shape == (0,)


def test_a_prompt_that_is_still_good_is_not_replaced() -> None:
    cache = PromptCache(every=3, prompt_dim=2, device=CPU)
    cache.store(["a"], output(1.0), 0)
    cache.store(["a", "b"], output(7.0, 8.0), 2)
    assert first(cache.lookup(["a", "b"], 2).output.prompt) == [1.0, 8.0]
    cached = cache.lookup(["a", "b"], 3)
    assert cached.missing.tolist() == [0]  # three batches old, and so is its age
    cache.store(["a"], output(9.0), 3)
    assert first(cache.lookup(["a"], 5).output.prompt) == [9.0]


def test_a_cache_that_goes_on_from_a_state_gives_the_same_prompts_for_as_long() -> None:
    cache, other = (PromptCache(every=3, prompt_dim=2, device=CPU) for _ in range(2))
    cache.store(["a", "b"], output(0.1, 2.0), 4)
    cache.store(["c"], output(3.0), 5)
    other.store(["d"], output(9.0), 5)
    batches, rows = cache.state()
    assert batches == {"a": 4, "b": 4, "c": 5}
    assert {query: row.tolist() for query, row in rows.items()} == {
        "a": [[torch.tensor(0.1).item()] * 2, [torch.tensor(-0.1).item()] * 2],
        "b": [[2.0, 2.0], [-2.0, -2.0]],
        "c": [[3.0, 3.0], [-3.0, -3.0]],
    }
    other.load_state(batches, rows)
    for batch_number in (5, 6, 7, 8):
        mine, its = (each.lookup(["a", "b", "c", "d"], batch_number) for each in (cache, other))
        assert torch.equal(mine.missing, its.missing)
        assert torch.equal(mine.output.prompt, its.output.prompt)
        assert torch.equal(mine.output.control, its.output.control)
    assert other.lookup(["d"], 5).missing.tolist() == [0]  # nothing but what the state holds


def test_a_state_is_a_copy_and_empty_where_nothing_is_kept() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    assert cache.state() == ({}, {})
    cache.store(["a"], output(1.0), 0)
    _, rows = cache.state()
    rows["a"].zero_()
    assert first(cache.lookup(["a"], 1).output.prompt) == [1.0]
