"""The solver: what it proposes from its memory, how far it is trusted, who learns."""

import copy

import pytest
import torch
from torch import Tensor

from arcdist.models import PermanentSolver, Proposal

D = 8
IDS = ("a:train:0", "b:train:0", "unknown:train:0")


def build(shaken=None, **options):
    torch.manual_seed(0)
    solver = PermanentSolver(**{"capacity": 16, "feature_dim": D, "top_k": 3} | options)
    return solver if shaken is None else shaken(solver)


def features(queries: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(queries, D, generator=torch.Generator().manual_seed(seed))


def fill(solver: PermanentSolver, count: int = 5, *, side: int = 4) -> None:
    """Solved problems m0, m1, ... with random features, queries and outcomes."""
    generator = torch.Generator().manual_seed(3)
    solver.remember(
        ids=[f"m{index}" for index in range(count)],
        features=features(count, seed=7),
        queries=torch.randint(0, 10, (count, side, side), generator=generator),
        outcomes=torch.randint(0, 10, (count, side, side), generator=generator),
        exact=torch.arange(count) % 2 == 0,
        step=1,
    )


def trust_null(solver: PermanentSolver, weight: float) -> None:
    """Take all attention to the null entry, or none of it."""
    with torch.no_grad():
        solver.to_key.weight.zero_()
        solver.to_key.bias.zero_()
        solver.sharpness.fill_(weight)


def test_candidates_are_log_probabilities(shaken, mixed):
    solver = build(shaken)
    for count in (0, 1, 5):
        fill(solver, count)
        proposal = solver(features(), mixed, IDS)
        assert proposal.candidate.shape == (3, 7, 8, 10)
        assert proposal.confidence_logit.shape == (3,)
        torch.testing.assert_close(proposal.candidate.exp().sum(-1), torch.ones(3, 7, 8))


def test_an_empty_memory_proposes_the_query(shaken, mixed):
    proposal = build(shaken)(features(), mixed, IDS)
    inside = mixed.query >= 0
    assert torch.equal(proposal.candidate.argmax(-1)[inside], mixed.query[inside])
    assert proposal.candidate.amax(-1)[inside].exp().min() > 0.998
    torch.testing.assert_close(proposal.candidate[~inside].exp(), torch.full((int((~inside).sum()), 10), 0.1))


def test_an_empty_memory_still_teaches_whom_to_trust(mixed):
    solver = build()
    agent = torch.randn(3, 7, 8, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weighed = solver(features(), mixed, IDS).weigh(agent)
    weighed[mixed.query >= 0].gather(-1, mixed.query[mixed.query >= 0][:, None]).sum().backward()
    for name, parameter in solver.confidence.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert agent.grad.abs().sum() > 0


def test_every_parameter_learns_from_a_filled_memory(shaken, mixed):
    solver = build(shaken)
    fill(solver)
    proposal = solver(features(), mixed, IDS)
    (proposal.candidate[mixed.query >= 0].cos().sum() + proposal.confidence_logit.sum()).backward()
    for name, parameter in solver.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_an_untrained_solver_is_hardly_trusted(mixed):
    solver = build()
    assert 0.02 < solver(features(), mixed, IDS).confidence_logit.sigmoid().mean() < 0.1


def test_the_candidate_by_a_slow_loop(shaken, mixed):
    solver = build(shaken)
    fill(solver)
    proposal = solver(features(), mixed, IDS)
    own, memory = torch.nn.functional.normalize(features(), dim=-1), solver.memory
    for row in range(3):
        cosines = torch.cosine_similarity(own[row][None], memory.features[:5])
        slots = cosines.argsort(descending=True)[:3].tolist()
        query = solver.to_query(own[row])
        matches = [
            query @ solver.to_key(memory.features[slot]) / 8 + solver.sharpness * cosines[slot] for slot in slots
        ]
        matches.append(query @ solver.null_key / 8)
        attention = torch.stack(matches).softmax(-1)
        as_is, by_map = solver.suggestion(own[row]).softmax(-1)
        for r in range(7):
            for c in range(8):
                votes = torch.full((10,), 1e-4)
                color = int(mixed.query[row, r, c])
                for weight, slot in zip(attention, slots, strict=False):
                    if r < 4 and c < 4:
                        votes[memory.outcomes[slot, r, c].long()] += weight * as_is
                    if color >= 0:
                        votes += weight * by_map * memory.color_maps[slot, color]
                if color >= 0:
                    votes[color] += attention[-1]
                torch.testing.assert_close(
                    proposal.candidate[row, r, c].exp(), votes / votes.sum(), rtol=1e-4, atol=1e-6
                )
        evidence = torch.cat([own[row], cosines[slots], attention[-1:]])
        torch.testing.assert_close(proposal.confidence_logit[row], solver.confidence(evidence)[0], rtol=1e-4, atol=1e-5)


def test_a_like_problem_s_outcome_is_proposed(mixed):
    solver = build(top_k=1)
    fill(solver)
    trust_null(solver, 50.0)
    with torch.no_grad():
        solver.suggestion.weight.zero_()
        solver.suggestion.bias.copy_(torch.tensor([20.0, -20.0]))
    proposal = solver(solver.memory.features[2:3].expand(3, -1), mixed, IDS)
    for row in range(3):
        assert torch.equal(proposal.candidate[row, :4, :4].argmax(-1), solver.memory.outcomes[2, :4, :4].long())


def test_a_like_problem_s_colour_map_is_applied_to_the_query(mixed):
    solver = build(top_k=1)
    recolor = torch.tensor([0, 5, 1, 2, 9, 4, 3, 8, 7, 6])
    colors = torch.arange(10).reshape(1, 2, 5)
    solver.remember(
        ids=["m"], features=features(1), queries=colors, outcomes=recolor[colors], exact=torch.tensor([True]), step=0
    )
    trust_null(solver, 50.0)
    with torch.no_grad():
        solver.suggestion.weight.zero_()
        solver.suggestion.bias.copy_(torch.tensor([-20.0, 20.0]))
    proposal = solver(features(1).expand(3, -1), mixed, IDS)
    inside = mixed.query >= 0
    assert torch.equal(proposal.candidate.argmax(-1)[inside], recolor[mixed.query[inside]])


def test_what_a_query_left_itself_changes_no_bit_of_its_proposal(shaken, mixed):
    solver = build(shaken)
    fill(solver, 2)
    first = solver(features(), mixed, IDS)
    for outcome in (3, 8):
        knowing = copy.deepcopy(solver)
        knowing.remember(
            ids=IDS[:1],
            features=features()[:1],
            queries=mixed.query[:1],
            outcomes=torch.full((1, 7, 8), outcome),
            exact=torch.tensor([True]),
            step=2,
        )
        second = knowing(features(), mixed, IDS)
        assert torch.equal(second.candidate[0], first.candidate[0])
        assert torch.equal(second.confidence_logit[0], first.confidence_logit[0])
        assert not torch.equal(second.candidate[1:], first.candidate[1:])


def test_the_length_of_the_features_does_not_matter(shaken, mixed):
    solver = build(shaken)
    fill(solver)
    first, second = solver(features(), mixed, IDS), solver(16.0 * features(), mixed, IDS)
    torch.testing.assert_close(second.candidate, first.candidate)
    torch.testing.assert_close(second.confidence_logit, first.confidence_logit)


def test_batch_and_padding_change_nothing(shaken, mixed, mixed_queries, collate, enlarged):
    solver = build(shaken)
    fill(solver)
    expected = solver(features(), mixed, IDS)
    large = solver(features(), enlarged(mixed, margin=2, pairs=1), IDS)
    torch.testing.assert_close(large.candidate[:, :7, :8], expected.candidate, rtol=1e-5, atol=1e-5)
    for row, query in enumerate(mixed_queries):
        inputs = collate(query).inputs
        _, height, width = inputs.query.shape
        alone = solver(features()[row : row + 1], inputs, IDS[row : row + 1])
        torch.testing.assert_close(alone.candidate[0], expected.candidate[row, :height, :width], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.confidence_logit[0], expected.confidence_logit[row], rtol=1e-5, atol=1e-5)


def test_weighing_by_hand():
    agent = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).reshape(2, 1, 1, 3)
    candidate = torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]).reshape(2, 1, 1, 3)
    confidence = torch.tensor([0.25, 0.9])
    proposal = Proposal(candidate=candidate.log(), confidence_logit=confidence.logit())
    weighed = proposal.weigh(agent.log() + 5.0)  # unnormalised logits of the same probabilities
    expected = torch.tensor([[0.55, 0.175, 0.275], [0.16, 0.11, 0.73]]).reshape(2, 1, 1, 3)
    torch.testing.assert_close(weighed.exp(), expected)


@pytest.mark.parametrize(("logit", "trusted"), [(200.0, "candidate"), (-200.0, "agent")])
def test_weighing_is_finite_where_the_confidence_is_certain(logit, trusted):
    sides = {
        "agent": torch.tensor([0.7, 0.3]).log().reshape(1, 1, 1, 2),
        "candidate": torch.tensor([0.4, 0.6]).log().reshape(1, 1, 1, 2),
    }
    confidence = torch.tensor([logit]).requires_grad_()
    weighed = Proposal(candidate=sides["candidate"], confidence_logit=confidence).weigh(sides["agent"])
    torch.testing.assert_close(weighed, sides[trusted])
    weighed.sum().backward()
    assert confidence.grad.isfinite().all()


def test_float32_inside_autocast(shaken, mixed):
    solver = build(shaken)
    fill(solver)
    agent = torch.randn(3, 7, 8, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = solver(features(), mixed, IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        proposal = solver(features(), mixed, IDS)
        weighed = proposal.weigh(agent)
    assert torch.equal(proposal.candidate, expected.candidate)
    assert torch.equal(proposal.confidence_logit, expected.confidence_logit)
    assert weighed.dtype == torch.float32
    torch.testing.assert_close(weighed.exp().sum(-1), torch.ones(3, 7, 8))


def test_statistics_of_an_empty_memory():
    assert build().statistics() == {"problems": 0.0, "exact": 0.0, "clusters": 0.0}


def test_statistics_count_clusters_of_like_problems():
    solver = build()
    # Two bundles of directions and one on its own, which is no cluster.
    east, north, west = torch.eye(D)[0], torch.eye(D)[1], -torch.eye(D)[0]
    nudge = 0.05 * torch.eye(D)[2]
    directions = torch.stack([east, east + nudge, 3.0 * east, north, north - nudge, west])
    grid = torch.zeros(6, 1, 1, dtype=torch.long)
    solver.remember(
        ids=list("uvwxyz"),
        features=directions,
        queries=grid,
        outcomes=grid,
        exact=torch.tensor([True, True, True, False, False, False]),
        step=0,
    )
    assert solver.statistics() == {"problems": 6.0, "exact": 0.5, "clusters": 2.0}


def test_a_state_dict_takes_parameters_and_memory_along(shaken, mixed):
    solver = build(shaken)
    fill(solver)
    other = build()
    other.load_state_dict(solver.state_dict())
    first, second = (each(features(), mixed, IDS) for each in (solver, other))
    assert torch.equal(first.candidate, second.candidate)
    assert torch.equal(first.confidence_logit, second.confidence_logit)
