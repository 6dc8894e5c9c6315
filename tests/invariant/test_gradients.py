"""What the two backward passes give: to every part a gradient from step 1, to the frozen base none, and together
exactly the gradient of the joint graph.
"""

import pytest
import torch

from arcdist.evaluation import answer, canvas_target, grade
from arcdist.losses import cell_mean, combined_loss, consistency, hard_cell_weight, query_mean, size_loss
from arcdist.rl import advantages, shaping_reward
from arcdist.training.step import StepSettings, train_step

UNCLIPPED = ("--optim.max_grad_norm=1e9", "--refiner.rl_grad_clip=1e9")
SIZE_WEIGHT = 0.75
REWARDED = ("--refiner.rl_delta_scale=300", "--refiner.rl_lr=1e-3")
"""Refinements that change answers, by a policy that soon looks at the prompt: rewards with a gradient."""


def settings(session, number=0):
    """Every query enters the memory."""
    return StepSettings(config=session.config, number=number, size_weight=SIZE_WEIGHT, memory_threshold=-1.0)


def step(session, batch, number=0):
    noise = session.refinement_noise(batch, 0)
    return train_step(batch, session.models, session.engines, noise, settings(session, number))


def named_parameters(session):
    models = session.models
    modules = {"qwen": models.qwen, "agent": models.agent, "solver": models.solver, "efe": models.efe}
    return {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}


def gradients_of_next_step(session, batch, number=0):
    """Gradients as the optimizers receive them, the refiner's included, and the step's report."""
    seen = {}
    refiner = {f"refiner.{name}": p for name, p in session.models.refiner.named_parameters()}
    parameters = named_parameters(session) | refiner

    def read(*_):
        # Qwen's engine is the first to step. It has made zeros of the gradients that the step did not give.
        seen.update({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})

    handle = session.engines.qwen.optimizers[0].register_step_pre_hook(read)
    report = step(session, batch, number)
    handle.remove()
    return seen, report


@pytest.fixture
def batches(build_tiny):
    def first(session, count=1):
        return list(session.training.loader(0, session.device, count))

    return first


VARIANTS = [(), ("--agent.kind=conv",), ("--qwen.fuse=concat-linear",), ("--qwen.lm_weight=0.5",)]


@pytest.mark.parametrize("flags", VARIANTS)
def test_every_group_has_a_gradient_from_step_1_and_the_frozen_base_none(build_tiny, batches, flags):
    session = build_tiny(*flags)
    frozen = {name: p for name, p in named_parameters(session).items() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in frozen.items()}
    (batch,) = batches(session)
    gradients, report = gradients_of_next_step(session, batch)

    expected = {"lora", "prompt_projection", "control_mlp", "agent", "solver", "efe", "refiner"}
    expected |= {"task_vectors"} if session.models.agent.task_vectors is not None else set()
    expected |= {"lm_head"} if session.config.qwen.lm_weight else set()
    assert set(report.group_norms) == expected
    assert all(norm > 0.0 for norm in report.group_norms.values()), report.group_norms

    # Parts of the agent that a norm over all of it would not show.
    forward, backward = gradients["agent.directions"]
    assert forward.abs().max() > 0
    assert backward.abs().max() > 0
    for name, gradient in gradients.items():
        if name.startswith(("agent.size_head.", "agent.from_prompt.", "agent.origin.")):
            assert gradient.abs().max() > 0, name

    assert frozen
    assert all(name.startswith("qwen.body.") and "lora_" not in name for name in frozen)
    assert gradients.keys().isdisjoint(frozen)
    assert all(p.grad is None for p in frozen.values())
    for name, value in before.items():
        assert torch.equal(frozen[name], value), name


@pytest.mark.parametrize("flags", VARIANTS)
def test_from_step_2_every_trainable_tensor_has_a_gradient(build_tiny, batches, flags):
    # Step 1 meets layers that begin at zero: what lies behind them, as LoRA's A behind its B, waits a step.
    session = build_tiny(*flags, "--agent_lr=1e-2", "--qwen_lr=1e-2")
    first, second = batches(session, 2)
    step(session, first)
    gradients, _ = gradients_of_next_step(session, second, number=1)
    trainable = {name for name, p in named_parameters(session).items() if p.requires_grad}
    assert trainable <= gradients.keys()
    assert [name for name in sorted(trainable) if gradients[name].abs().max() == 0] == []


def joint_losses(session, batch, noise):
    """The losses of a step on one graph: the prompt goes from Qwen to the agent uncut.

    Written out from the design, apart from the step itself. Gives the loss to backpropagate, its value, the refiner's
    own loss, and the advantages.
    """
    models, reward = session.models, session.config.reward
    (queries,) = batch.queries
    inputs, targets = queries.inputs, queries.targets
    prompt, control = models.qwen(inputs.tokens, inputs.token_mask, inputs.features)
    writing = 0.0
    if weight := session.config.qwen.lm_weight:
        lesson = models.qwen(
            inputs.tokens, inputs.token_mask, inputs.features, targets.target, targets.target_size
        ).lm_loss
        writing = weight * lesson.mean()
    refinements = [
        models.refiner.refine_prompt(prompt, control.detach(), inputs.summary, noise=draw) for draw in noise.unbind(1)
    ]
    refined = refinements[0].refined
    with torch.no_grad():
        before, *others = (models.agent(inputs, each) for each in (prompt, *(r.refined for r in refinements[1:])))
    after = models.agent(inputs, refined)
    final = models.solver(prompt.detach(), inputs, batch.ids).weigh(after.final_logits.detach())

    target, mask = canvas_target(targets, after)
    terms = models.efe.per_query(
        *(after.forward_logits, after.backward_logits, after.state_logits, after.obs_probs),
        *(after.final_logits, target, refined, mask),
        halting=after.halting,
    )
    answered = [answer(each, inputs, targets) for each in (before, after, *others)]
    gain = torch.stack(
        [shaping_reward(answered[0], each, targets.target, inputs.query).reward for each in answered[1:]]
    )
    if len(gain) == 1:
        advantage = advantages(gain, gain.mean(), gain.var(correction=0))
    else:
        advantage = (gain - gain.mean(0)) / ((gain - gain.mean(0)).square().mean() + 1e-6).sqrt()
    hard = 1.0 - grade(answer(after, inputs, targets, final), targets).cell
    size = size_loss(after.size_logits.unbind(1), targets.target_size)
    way_back = after.reconstruction_logits.gather(-1, inputs.query.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    energy = hard_cell_weight(hard) * terms["total"] + SIZE_WEIGHT * size + consistency(final, target, mask)
    energy = energy - session.config.efe.reversibility_weight * cell_mean(way_back, inputs.query >= 0)
    value = combined_loss(query_mean(energy), gain.mean(), reward.efe_weight, reward.reward_weight).detach()
    # The mean reward is a number; what stands for it has the gradient of the expected one.
    log_likelihood = (advantage.detach() * torch.stack([each.log_prob for each in refinements])).mean()
    surrogate = reward.efe_weight * query_mean(energy) - reward.reward_weight * log_likelihood + writing
    # The refiner's own loss is a mean over draws too.
    own = [models.refiner.rl_loss(each.transition, a)["total"] for each, a in zip(refinements, advantage, strict=True)]
    own_loss = torch.stack(own).mean()
    if coefficient := models.refiner.rl_path_coef:
        # What the grid modules minimise, in the prompt that the policy makes, if its action is not cut off.
        energy_loss = reward.efe_weight * query_mean(energy)
        (in_refined,) = torch.autograd.grad(energy_loss, refined, retain_graph=True)
        policy, _ = models.refiner.policy_and_value(prompt.detach(), control.detach(), inputs.summary)
        delta, alpha = policy.squash(policy.at(noise[:, 0]))
        own_loss = own_loss + coefficient * (in_refined * alpha * delta).sum()
    return surrogate, value, own_loss, advantage


@pytest.mark.parametrize(
    "flags",
    [
        *VARIANTS,
        ("--qwen.lora_r=4", "--agent.task_vectors=false"),
        ("--refiner.draws=3",),
        ("--refiner.draws=2", "--refiner.rl_path_coef=9"),
    ],
)
def test_the_split_backward_equals_the_joint_one(build_tiny, batches, flags):
    session = build_tiny(*UNCLIPPED, *REWARDED, *flags, "--agent_lr=1e-2", "--qwen_lr=1e-2", "--max_batches=3")
    *earlier, batch = batches(session, 3)
    for number, other in enumerate(earlier):  # away from the zeros of the first weights, with a memory
        step(session, other, number)
    assert len(session.models.solver.memory) == 8

    (noise,) = session.refinement_noise(batch, 0)
    surrogate, value, own, advantage = joint_losses(session, batch, noise)
    assert advantage.abs().max() > 0.1
    surrogate.backward()
    parameters = named_parameters(session)
    joint = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    session.models.refiner.zero_grad()
    own.backward()
    refiner = {f"refiner.{n}": p.grad.clone() for n, p in session.models.refiner.named_parameters()}
    for parameter in (*parameters.values(), *session.models.refiner.parameters()):
        parameter.grad = None

    split, report = gradients_of_next_step(session, batch, number=2)
    assert report.metrics["loss"] == pytest.approx(value.item(), rel=1e-6)
    # The refiner learns from its own loss alone, though the combined loss reaches it by log_prob.
    assert split.keys() == joint.keys() | refiner.keys()
    for name, gradient in (joint | refiner).items():
        # Elements near 0 are differences of numbers of the others' size, and rounded as these are.
        rounding = 1e-6 + 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(split[name], gradient, rtol=0, atol=rounding, msg=lambda m, n=name: f"{n}: {m}")
    assert any(gradient.abs().max() > 1e-3 for name, gradient in joint.items() if ".lora_" in name)


def test_a_step_whose_prompts_are_all_kept_leaves_qwen_as_it_is(build_tiny, batches):
    session = build_tiny("--qwen.every=2")
    (batch,) = batches(session)
    _, first = gradients_of_next_step(session, batch, number=0)
    before = {name: value.clone() for name, value in session.models.qwen.named_parameters()}
    moments = session.engines.qwen.gather_moments()
    _, second = gradients_of_next_step(session, batch, number=1)
    parts = ("lora", "prompt_projection", "control_mlp")
    assert all(first.group_norms[part] > 0.0 for part in parts)
    assert [second.group_norms[part] for part in parts] == [0.0, 0.0, 0.0]
    assert second.group_norms["agent"] > 0.0
    after = dict(session.models.qwen.named_parameters())
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []
    assert all(torch.equal(value, moments[name]) for name, value in session.engines.qwen.gather_moments().items())
    assert session.engines.qwen.schedule.steps_done == session.engines.grid.schedule.steps_done
    _, third = gradients_of_next_step(session, batch, number=2)
    assert all(third.group_norms[part] > 0.0 for part in parts)


def test_a_batch_of_cached_and_computed_prompts_trains_qwen_on_the_computed_ones(build_tiny):
    session = build_tiny("--qwen.every=5", *UNCLIPPED)

    def batch(rows):
        return next(session.training.load([rows], 0, session.device))

    step(session, batch([0, 1]), 0)
    gradients, report = gradients_of_next_step(session, batch([0, 2]), 1)
    assert report.group_norms["lora"] > 0.0
    assert any(gradient.any() for name, gradient in gradients.items() if name.startswith("qwen."))
