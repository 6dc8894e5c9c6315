"""What a causal language model writes after a prompt, against transformers' own logits and against enumeration."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.real_models import smollm2
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config, Qwen3Config, Qwen3NextConfig

from arcdist.data.tasks import Pair
from arcdist.data.text import GridTokenizer, embedded_tokenizer
from arcdist.models import qwen_writer
from arcdist.models.qwen_source import load_body
from arcdist.models.qwen_writer import GridWriter, SymbolHead, lm_loss, token_log_probs, with_outputs

TOKENIZER = embedded_tokenizer()
SIZES = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SIZES | {"intermediate_size": 24, "num_key_value_heads": 1}
SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 0,
    "head_dim": 8,
}
CONFIGS = {
    "qwen2": Qwen2Config(**WIDE, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**WIDE, head_dim=8, tie_word_embeddings=True),
    "sliding": Qwen2Config(**WIDE, **SLIDING),
    "linear": Qwen3NextConfig(**WIDE, **LINEAR),
    "gpt2": GPT2Config(vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=256),
}


def causal_lm(kind: str = "qwen2") -> nn.Module:
    """A model whose logits differ between tokens and texts, and whose grids are not too long."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
        model.lm_head = nn.Linear(16, 17)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
            model.lm_head.bias[10:12] += torch.tensor([3.0, 4.0])
    return model


def writer_of(model: nn.Module, **options: int) -> GridWriter:
    return GridWriter(model.base_model, model.lm_head, TOKENIZER, **options)


def prompts(*sizes: tuple[int, int], margin: int = 0, tokenizer: GridTokenizer = TOKENIZER) -> tuple[Tensor, Tensor]:
    """One prompt a size, of random grids of that size, padded on the right."""
    texts = []
    for height, width in sizes:
        rng = np.random.default_rng([height, width])
        first, second, third = rng.integers(0, 10, (3, height, width), dtype=np.uint8)
        texts.append(tokenizer.encode([Pair(first, second)], third))
    longest = max(map(len, texts)) + margin
    tokens = np.full((len(texts), longest), tokenizer.pad_id)
    mask = np.arange(longest) < np.array([[len(text)] for text in texts])
    tokens[mask] = np.concatenate(texts)
    return torch.from_numpy(tokens), torch.from_numpy(mask)


MIXED = ((3, 4), (1, 1), (2, 2))


def straightforward(model: nn.Module, prompt: Tensor, output: np.ndarray) -> float:
    """Sum of the logits' log-softmax over an output's tokens, of one unpadded text, read at once."""
    text = torch.cat([prompt, torch.from_numpy(output)])[None]
    with torch.no_grad():
        log_probs = model(text, use_cache=False).logits[0].double().log_softmax(-1)
    return log_probs[len(prompt) - 1 : -1].gather(-1, text[0, len(prompt) :, None]).sum().item()


def grids(count: int, *, side: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.integers(0, 10, rng.integers(1, side + 1, 2), dtype=np.uint8) for _ in range(count)]


def alone(tokens: Tensor, mask: Tensor, query: int) -> Tensor:
    return tokens[query, mask[query]]


@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_scorer_is_the_sum_of_transformers_logits(kind: str, rows: int) -> None:
    model = causal_lm(kind)
    tokens, mask = prompts(*MIXED, margin=3)
    candidates = [grids(3), [], grids(2, side=7)]
    found = writer_of(model, rows=rows).log_prob(tokens, mask, candidates)
    expected = [
        [straightforward(model, alone(tokens, mask, query), TOKENIZER.encode_output(grid)) for grid in of_query]
        for query, of_query in enumerate(candidates)
    ]
    assert list(map(len, found)) == [3, 0, 2]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_the_scorer_is_the_sum_of_a_real_models_logits() -> None:
    folder = smollm2()
    body, tokenizer = load_body(str(folder), "pretrained", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, mask = prompts((3, 3), (2, 5), tokenizer=tokenizer)
    candidates = [grids(2), grids(3)]
    writer = GridWriter(body, model.lm_head, tokenizer)
    found = writer.log_prob(tokens, mask, candidates)
    for query, of_query in enumerate(candidates):
        for log_prob, grid in zip(found[query], of_query, strict=True):
            expected = straightforward(model, alone(tokens, mask, query), tokenizer.encode_output(grid))
            assert log_prob == pytest.approx(expected, abs=1e-4)
    for query, written in enumerate(writer.greedy(tokens, mask, max_side=5)):
        expected = straightforward(model, alone(tokens, mask, query), tokenizer.encode_output(written.grid))
        assert written.log_prob == pytest.approx(expected, abs=1e-4)


def uncached_greedy(model: nn.Module, prompt: Tensor, max_side: int) -> tuple[list[list[int]], float]:
    """The most probable symbol of those that fit, the whole text read again for each."""
    text, rows, log_prob = prompt.tolist(), [[]], 0.0
    while True:
        with torch.no_grad():
            log_probs = model(torch.tensor([text]), use_cache=False).logits[0, -1].double().log_softmax(-1)
        width = len(rows[0]) if len(rows) > 1 else None
        here = len(rows[-1])
        fitting = list(range(10)) if here < (width or max_side) and len(rows) <= max_side else []
        fitting += [10] if here and width in (None, here) else []
        fitting += [11] if width and not here else []
        symbol = max(fitting, key=lambda each: log_probs[each].item())
        log_prob += log_probs[symbol].item()
        if symbol == 11:
            return rows[:-1], log_prob
        text.append(symbol)
        if symbol == 10:
            rows.append([])
        else:
            rows[-1].append(symbol)


@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("kind", CONFIGS)
def test_decoding_with_the_cache_is_decoding_without(kind: str, rows: int) -> None:
    model = causal_lm(kind)
    tokens, mask = prompts(*MIXED)
    for query, written in enumerate(writer_of(model, rows=rows).greedy(tokens, mask, max_side=4)):
        grid, log_prob = uncached_greedy(model, alone(tokens, mask, query), 4)
        assert written.grid.tolist() == grid
        assert written.log_prob == pytest.approx(log_prob, abs=1e-4)


def everything(writer: GridWriter, tokens: Tensor, mask: Tensor, places: list[int]) -> list[object]:
    """What every method says of each query, with numbers of a query's own."""
    generators = [np.random.default_rng(place) for place in places]
    greedy = writer.greedy(tokens, mask, max_side=3)
    drawn = writer.sample(tokens, mask, generators, draws=3, temperature=1.5, max_side=3)
    searched = writer.search(tokens, mask, floor=1e-3, max_side=3)
    scored = writer.log_prob(tokens, mask, [grids(4)] * len(tokens))
    return [
        [
            [(one.grid.tolist(), pytest.approx(one.log_prob, abs=1e-4)) for one in (first, *draws, *found.grids)],
            [pytest.approx(number, abs=1e-4) for number in scores],
            found.complete,
        ]
        for first, draws, found, scores in zip(greedy, drawn, searched, scored, strict=True)
    ]


@pytest.mark.parametrize("kind", CONFIGS)
def test_neither_padding_nor_the_other_queries_change_anything(kind: str) -> None:
    model = causal_lm(kind)
    tokens, mask = prompts(*MIXED)
    whole = everything(writer_of(model), tokens, mask, [0, 1, 2])
    assert all(len(written) > 4 and complete for written, _, complete in whole)
    noise = torch.cat([tokens, torch.full((3, 5), 4)], 1)
    wider = torch.cat([mask, mask.new_zeros(3, 5)], 1)
    assert everything(writer_of(model), noise, wider, [0, 1, 2]) == whole
    assert everything(writer_of(model, rows=45), tokens, mask, [0, 1, 2]) == whole
    assert everything(writer_of(model), tokens.flip(0), mask.flip(0), [2, 1, 0]) == whole[::-1]
    for query in range(3):
        text = alone(tokens, mask, query)[None]
        assert everything(writer_of(model), text, torch.ones_like(text, dtype=torch.bool), [query]) == [whole[query]]


@pytest.fixture(scope="module")
def enumerated() -> tuple[nn.Module, list[dict[bytes, float]]]:
    """A model, and the probability of every grid with sides up to 2 after two prompts."""
    model = causal_lm()
    tokens, mask = prompts((2, 2), (1, 3))
    found = []
    for query in range(2):
        prompt, every = alone(tokens, mask, query), {}
        for height, width in product((1, 2), repeat=2):
            cells = np.array(list(product(range(10), repeat=height * width)), dtype=np.uint8)
            of_size = list(cells.reshape(-1, height, width))
            outputs = torch.from_numpy(np.stack([TOKENIZER.encode_output(grid) for grid in of_size]))
            texts = torch.cat([prompt.expand(len(outputs), -1), outputs], 1)
            with torch.no_grad():
                logits = model(texts, use_cache=False).logits[:, len(prompt) - 1 : -1]
            log_probs = logits.double().log_softmax(-1).gather(-1, outputs[..., None])[..., 0].sum(1)
            every |= {key(grid): number for grid, number in zip(of_size, log_probs.tolist(), strict=True)}
        found.append(every)
    return model, found


def key(grid: np.ndarray) -> bytes:
    return bytes(grid.shape) + grid.tobytes()


@settings(deadline=None, max_examples=20)
@given(st.floats(-9, -0.5))
def test_search_finds_what_enumeration_finds(enumerated, exponent: float) -> None:
    model, every = enumerated
    floor = math.exp(exponent)
    searched = writer_of(model, rows=10_000).search(*prompts((2, 2), (1, 3)), floor=floor, max_side=2)
    for found, known in zip(searched, every, strict=True):
        assert found.complete
        log_probs = [each.log_prob for each in found.grids]
        assert log_probs == sorted(log_probs, reverse=True)
        ours = {key(each.grid): each.log_prob for each in found.grids}
        assert len(ours) == len(found.grids)
        # What lies on the floor up to rounding may be on either side.
        assert {grid for grid, number in known.items() if number > exponent + 1e-4} <= ours.keys()
        assert {grid for grid, number in known.items() if number > exponent - 1e-4} >= ours.keys()
        assert ours == {grid: pytest.approx(known[grid], abs=1e-4) for grid in ours}


def test_enumerated_probabilities_exclude_each_other(enumerated) -> None:
    for every in enumerated[1]:
        assert len(every) == 10 + 100 + 100 + 10_000
        assert 0 < math.fsum(map(math.exp, every.values())) < 1


def test_a_search_keeps_the_most_probable_beginnings_and_says_so(enumerated) -> None:
    model, every = enumerated
    tokens, mask = prompts((2, 2), (1, 3))
    whole = writer_of(model).search(tokens, mask, floor=1 / 64, max_side=2)
    narrow = writer_of(model, rows=2).search(tokens, mask, floor=1e-4, max_side=2)
    assert [found.complete for found in whole] == [True, True]
    assert [found.complete for found in narrow] == [False, False]
    for found, known in zip(narrow, every, strict=True):
        assert found.grids
        for each in found.grids:
            assert each.log_prob == pytest.approx(known[key(each.grid)], abs=1e-4)


def test_queries_that_do_not_fit_together_wait(enumerated, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = enumerated
    tokens, mask = prompts((2, 2), (1, 3))
    read: list[int] = []
    append = qwen_writer._Texts.append

    def count(self, symbols: Tensor) -> None:
        read.append(len(symbols))
        append(self, symbols)

    monkeypatch.setattr(qwen_writer._Texts, "append", count)
    together = writer_of(model, rows=1000).search(tokens, mask, floor=1e-3, max_side=2)
    most = max(read)
    assert max(len(found.grids) for found in together) > 3
    read.clear()
    apart = writer_of(model, rows=most - 1).search(tokens, mask, floor=1e-3, max_side=2)
    assert max(read) == most - 1 or max(read) < most
    for ours, theirs in zip(apart, together, strict=True):
        assert ours.complete
        assert [each.grid.tolist() for each in ours.grids] == [each.grid.tolist() for each in theirs.grids]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), max_side=st.integers(1, 5), temperature=st.sampled_from([0.05, 1.0, 20.0]))
def test_what_is_written_is_a_grid(seed: int, max_side: int, temperature: float) -> None:
    model = causal_lm()
    tokens, mask = prompts((2, 2), (1, 3))
    writer = writer_of(model)
    drawn = writer.sample(
        tokens,
        mask,
        [np.random.default_rng([seed, query]) for query in range(2)],
        draws=4,
        temperature=temperature,
        max_side=max_side,
    )
    assert [len(draws) for draws in drawn] == [4, 4]
    for draws in (*drawn, writer.greedy(tokens, mask, max_side=max_side)):
        for grid, _ in draws if isinstance(draws, list) else [draws]:
            assert grid.dtype == np.uint8
            assert grid.ndim == 2
            assert min(grid.shape) >= 1
            assert max(grid.shape) <= max_side
            assert grid.max() <= 9
    scores = writer.log_prob(tokens, mask, [[each.grid for each in draws] for draws in drawn])
    for draws, of_query in zip(drawn, scores, strict=True):
        assert [each.log_prob for each in draws] == pytest.approx(of_query, abs=1e-4)


def test_draws_follow_the_models_probabilities(enumerated) -> None:
    """Of the grids of one cell, each is drawn as often as the model writes it, given that it writes one."""
    model, _ = enumerated
    tokens, mask = prompts((2, 2))
    (drawn,) = writer_of(model, rows=500).sample(tokens, mask, [np.random.default_rng(0)], draws=3000, max_side=1)
    first = writer_of(model).symbol_ids[:10]
    with torch.no_grad():
        expected = model(tokens).logits[0, -1, first].double().softmax(-1).numpy()
    counted = np.bincount([int(each.grid[0, 0]) for each in drawn], minlength=10) / 3000
    assert np.abs(counted - expected).max() < 0.03
    assert expected.max() > 0.15


def test_a_low_temperature_is_greedy() -> None:
    model = causal_lm()
    tokens, mask = prompts(*MIXED)
    generators = [np.random.default_rng(query) for query in range(3)]
    drawn = writer_of(model).sample(tokens, mask, generators, draws=1, temperature=1e-6, max_side=4)
    greedy = writer_of(model).greedy(tokens, mask, max_side=4)
    assert [draws[0].grid.tolist() for draws in drawn] == [each.grid.tolist() for each in greedy]


def test_dropout_and_mode_of_the_body() -> None:
    model = causal_lm("gpt2").train()
    tokens, mask = prompts((2, 2))
    first, second = (writer_of(model).greedy(tokens, mask, max_side=3) for _ in range(2))
    assert first[0].log_prob == second[0].log_prob
    assert model.base_model.training


def test_loss_by_hand() -> None:
    """Each output's own mean, over the whole vocabulary; a query without an output has none."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 4, generator=generator, requires_grad=True)
    head = nn.Linear(4, 6)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [0, 0, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    loss = lm_loss(head, hidden, tokens, mask)
    logits = head(hidden)
    first = F.cross_entropy(logits[0, 1:4], tokens[0, 2:5])
    second = F.cross_entropy(logits[1, 2:3], tokens[1, 3:4])
    torch.testing.assert_close(loss, torch.stack([first, second, torch.zeros(())]))
    (ours,) = torch.autograd.grad(loss.sum(), hidden, retain_graph=True)
    (theirs,) = torch.autograd.grad(first + second, hidden)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(lm_loss(head, hidden, tokens, torch.zeros_like(mask)), torch.zeros(3))


def test_outputs_follow_their_prompts() -> None:
    tokens, mask = prompts(*MIXED, margin=2)
    outputs = [*grids(2, side=9), None]
    target = torch.full((3, 9, 9), -1)
    sizes = torch.zeros(3, 2, dtype=torch.int64)
    expected = []
    for query, output in enumerate(outputs):
        text = alone(tokens, mask, query)
        if output is not None:
            height, width = output.shape
            target[query, :height, :width] = torch.from_numpy(output)
            sizes[query] = torch.tensor(output.shape)
            text = torch.cat([text, torch.from_numpy(TOKENIZER.encode_output(output))])
        expected.append(text.tolist())
    texts, output_mask = with_outputs(tokens, mask, target, sizes, torch.from_numpy(TOKENIZER.symbol_ids))
    assert texts.shape[1] == max(tokens.shape[1], *map(len, expected))
    whole = F.pad(mask, (0, texts.shape[1] - mask.shape[1])) | output_mask
    assert [alone(texts, whole, query).tolist() for query in range(3)] == expected
    assert output_mask.sum(1).tolist() == [len(TOKENIZER.encode_output(grid)) for grid in outputs[:2]] + [0]
    assert torch.equal(alone(tokens, mask, 2), alone(texts, whole, 2))


def test_a_symbol_head_knows_what_a_grid_is_written_with_and_nothing_else() -> None:
    ids = torch.tensor([*range(20, 30), 7, 3, 40])
    head = SymbolHead(4, ids, std=0.5)
    assert [parameter.shape for parameter in head.parameters()] == [(12, 4)]
    assert list(head.state_dict()) == ["rows.weight"]
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(hidden.bfloat16())
    assert (logits.shape, logits.dtype) == ((5, 41), torch.float32)
    torch.testing.assert_close(logits[:, ids[:12]], hidden.bfloat16().float() @ head.rows.weight.T)
    others = sorted({*range(41)} - {*ids[:12].tolist()})
    assert (logits[:, others] == -math.inf).all()
    loss = -token_log_probs(head, hidden, ids[torch.tensor([0, 3, 10, 11, 9])]).mean()
    (gradient,) = torch.autograd.grad(loss, head.rows.weight)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_logits_are_held_for_some_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head = nn.Linear(4, 6)
    hidden, tokens = torch.randn(10, 4, requires_grad=True), torch.arange(10) % 6
    whole = token_log_probs(head, hidden, tokens)
    expected = head(hidden).log_softmax(-1)[torch.arange(10), tokens]
    torch.testing.assert_close(whole, expected)
    (gradient,) = torch.autograd.grad(whole.square().sum(), hidden)
    monkeypatch.setattr(qwen_writer, "_TOKENS_AT_ONCE", 3)
    sizes: list[int] = []
    head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    parts = token_log_probs(head, hidden, tokens)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), hidden)[0], gradient)
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3, 3, 3]
    with torch.no_grad():
        torch.testing.assert_close(token_log_probs(head, hidden, tokens), whole)


def test_loss_in_bfloat16_is_computed_in_float32() -> None:
    hidden = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    head = nn.Linear(4, 6, dtype=torch.bfloat16)
    tokens = torch.arange(20) % 6
    found = token_log_probs(head, hidden, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head(hidden).float().log_softmax(-1)[torch.arange(20), tokens])
