"""The sizes that the rules give, by hand, and the mixture over them."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from arcdist.data import QueryInputs
from arcdist.models import predicted_size
from arcdist.models.size_head import RULES, SizeHead, size_candidates

E = 4


@pytest.fixture
def sized(mixed):
    """Queries of which only the sizes matter: `(query's size, [(input size, output size), ...])` each."""

    def make(*queries) -> QueryInputs:
        pairs = max(len(context) for _, context in queries)
        absent, rows = ((0, 0), (0, 0)), [0] * len(queries)
        return QueryInputs(
            **{
                field.name: getattr(mixed, field.name)[rows]
                for field in fields(mixed)
                if not field.name.startswith("context") and field.name != "query_size"
            },
            query_size=torch.tensor([size for size, _ in queries]),
            context_inputs=mixed.context_inputs[rows, :1].expand(-1, pairs, -1, -1),
            context_outputs=mixed.context_outputs[rows, :1].expand(-1, pairs, -1, -1),
            context_sizes=torch.tensor([[*context, *[absent] * (pairs - len(context))] for _, context in queries]),
        )

    return make


def candidates(inputs: QueryInputs, max_grid_size: int = 30) -> dict[str, list[list[int]]]:
    return dict(zip(RULES, size_candidates(inputs, max_grid_size).tolist(), strict=True))


def test_rules_by_hand(sized):
    doubled = ((4, 5), [((2, 3), (4, 6)), ((1, 1), (2, 2)), ((3, 2), (6, 4))])
    constant = ((9, 2), [((5, 5), (3, 1)), ((7, 4), (3, 1))])
    single = ((6, 6), [((3, 3), (1, 3))])
    assert candidates(sized(doubled, constant, single)) == {
        "as the query": [[4, 5], [9, 2], [6, 6]],
        "as the first context output": [[4, 6], [3, 1], [1, 3]],
        "as the last context output": [[6, 4], [3, 1], [1, 3]],
        # 9 (3/5 + 3/7) / 2 = 4.63, 2 (1/5 + 1/4) / 2 = 0.45 -> 1; 6/3 = 2.
        "by the context's mean ratio": [[8, 10], [5, 1], [2, 6]],
    }


def test_absent_pairs_are_neither_last_nor_averaged(sized):
    one = ((3, 3), [((1, 1), (2, 5))])
    three = ((3, 3), [((1, 1), (2, 5)), ((2, 2), (2, 2)), ((3, 3), (9, 3))])
    alone, padded = candidates(sized(one)), candidates(sized(one, three))
    assert all(padded[rule][0] == sizes[0] for rule, sizes in alone.items())
    assert alone["as the last context output"] == [[2, 5]]
    assert alone["by the context's mean ratio"] == [[6, 15]]


def test_a_third_of_a_side_is_whole(sized):
    assert candidates(sized(((9, 27), [((3, 3), (1, 1))] * 3)))["by the context's mean ratio"] == [[3, 9]]


def test_candidates_stay_on_the_canvas(sized):
    inputs = sized(((30, 1), [((1, 9), (3, 1))]))
    assert candidates(inputs)["by the context's mean ratio"] == [[30, 1]]
    assert candidates(inputs, 12)["as the query"] == [[12, 1]]


def build(max_grid_size: int = 30) -> SizeHead:
    torch.manual_seed(0)
    return SizeHead(condition_dim=E, max_grid_size=max_grid_size)


def condition(queries: int) -> Tensor:
    return torch.randn(queries, E, generator=torch.Generator().manual_seed(0))


def trust(head: SizeHead, rule: int) -> SizeHead:
    """Let all of the weight lie on one rule; the last is the free guess."""
    with torch.no_grad():
        head.gates.weight.zero_()
        head.gates.bias.copy_(20.0 * torch.eye(len(RULES) + 1)[rule].repeat(2))
    return head


def test_log_probabilities_of_every_side(mixed):
    logits = build()(condition(3), mixed)
    assert logits.shape == (3, 2, 30)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 2))
    assert logits.isfinite().all()


def test_the_mixture_by_a_slow_loop(mixed):
    head = build()
    logits = head(condition(3), mixed)
    sizes = size_candidates(mixed, 30)
    numbers = torch.cat([sizes, mixed.working_area[None]]).movedim(0, 1).flatten(1) / 30
    hidden = torch.nn.functional.silu(head.hidden(torch.cat([condition(3), numbers], dim=-1)))
    for query in range(3):
        for axis in (0, 1):
            gates = head.gates(hidden)[query, 5 * axis : 5 * axis + 5].softmax(-1)
            slow = gates[4] * head.guess(hidden)[query, 30 * axis : 30 * axis + 30].softmax(-1) + 1e-6
            for rule in range(4):
                slow[sizes[rule, query, axis] - 1] += gates[rule]
            torch.testing.assert_close(logits[query, axis].exp(), slow / slow.sum())


@pytest.mark.parametrize("rule", range(len(RULES)))
def test_each_rule_can_be_trusted(rule, mixed):
    logits = trust(build(), rule)(condition(3), mixed)
    assert torch.equal(logits.argmax(-1) + 1, size_candidates(mixed, 30)[rule])
    assert logits.amax(-1).min() > -1e-3


def test_every_size_keeps_a_probability_and_a_gradient(mixed):
    head = trust(build(), 0)
    logits = head(condition(3), mixed)
    assert logits.min() > -20  # -ln of the floor is 14
    (-logits[:, :, 29].sum()).backward()  # nobody's rule
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_queries_and_padding_change_nothing(mixed, mixed_queries, collate, enlarged):
    head = build()
    expected = head(condition(3), mixed)
    torch.testing.assert_close(head(condition(3), enlarged(mixed, margin=4, pairs=3)), expected, rtol=0, atol=1e-6)
    for row, query in enumerate(mixed_queries):
        alone = head(condition(3)[row : row + 1], collate(query).inputs)
        torch.testing.assert_close(alone[0], expected[row], rtol=0, atol=1e-6)


def test_the_likeliest_size_that_fits():
    logits = torch.full((2, 2, 5), -9.0)
    logits[0, 0, 4] = -0.1  # height 5, over the working area
    logits[0, 0, 1] = -2.0
    logits[0, 1, 2] = -0.1
    logits[1, 0, 0] = -0.1
    logits[1, 1, 4] = -0.1
    area = torch.tensor([[4, 3], [1, 5]])
    assert predicted_size(logits, area).tolist() == [[2, 3], [1, 5]]
    assert predicted_size(logits, area.clamp(max=1)).tolist() == [[1, 1], [1, 1]]
    assert predicted_size(logits, torch.full((2, 2), 30)).tolist() == [[5, 3], [1, 5]]


def test_predicted_sizes_are_within_the_working_area(mixed):
    for seed in range(20):
        logits = torch.randn(3, 2, 30, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        sizes = predicted_size(logits, mixed.working_area)
        assert (sizes >= 1).all()
        assert (sizes <= mixed.working_area).all()
        for query in range(3):
            for axis in (0, 1):
                allowed = logits[query, axis, : mixed.working_area[query, axis]]
                assert sizes[query, axis] == allowed.argmax() + 1
