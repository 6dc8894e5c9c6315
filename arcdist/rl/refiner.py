"""The refiner: a policy that edits the prompt and learns from whether the answer got better."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    SigmoidTransform,
    TanhTransform,
)

from arcdist.losses import query_mean

# B queries, P prompt, D control vector, F grid summary, A = P + 1 components of an action, N numbers of a state.

INITIAL_LOG_STD, LOG_STD_RANGE = -0.7, 2.0
"""log std = -0.7 + 2 tanh(.): an untrained policy has a std of 0.5, and none leaves 0.07 to 3.7."""
FORWARD_SHARE = 0.2
"""beta of the curiosity paper: weight of the forward loss; the inverse loss has the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SquashedGaussian:
    """Delta = delta_scale tanh(u) and alpha = sigmoid(v), (u, v) ~ Normal(mean, std) with independent components.

    Actions are passed as (u, v), before squashing: (Delta, alpha) saturate, and u cannot be recovered from them.
    """

    mean: Float[Tensor, "B A"]
    std: Float[Tensor, "B A"]
    delta_scale: float

    def at(self, noise: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """The action of a standard normal draw: mean + std x noise."""
        return self.mean + self.std * noise

    def squash(self, action: Float[Tensor, "B A"]) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B 1"]]:
        """(Delta, alpha): the change of the prompt and the share of it that is applied."""
        squashed: Tensor = self._squashing(action)
        return squashed[:, :-1], squashed[:, -1:]

    def log_prob(self, action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Log-density of (Delta, alpha) in nats, summed over the A components."""
        gaussian: Tensor = self._gaussian.log_prob(action).sum(dim=-1)
        return gaussian - self._log_volume(action)

    def entropy(self, noise: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Unbiased one-sample estimate of the entropy of (Delta, alpha) in nats, differentiable in mean and std.

        The entropy of a squashed Gaussian has no closed form. That of the Gaussian alone would reward an ever larger
        std, which drives tanh into saturation; this one has its maximum before.
        """
        gaussian: Tensor = self._gaussian.entropy().sum(dim=-1)
        return gaussian + self._log_volume(self.at(noise))

    @property
    def _gaussian(self) -> Normal:
        # Without validation, which would wait for the device each time.
        return Normal(self.mean, self.std, validate_args=False)

    @property
    def _squashing(self) -> CatTransform:
        to_delta = ComposeTransform([TanhTransform(), AffineTransform(0.0, self.delta_scale)])
        return CatTransform([to_delta, SigmoidTransform()], dim=-1, lengths=[self.mean.shape[-1] - 1, 1])

    def _log_volume(self, action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Log-determinant of the Jacobian of squashing, from the action before it: stable where it saturates."""
        squashing = self._squashing
        log_slopes: Tensor = squashing.log_abs_det_jacobian(action, squashing(action))
        return log_slopes.sum(dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curiosity:
    """Loss and intrinsic reward of B transitions."""

    loss: Float[Tensor, " B"]
    """0.8 x inverse error + 0.2 x forward error."""
    bonus: Float[Tensor, " B"]
    """Intrinsic reward, 0 to 1, detached."""


class IntrinsicCuriosity(nn.Module):
    """Features of a state that tell which action was taken, and a model of how an action changes them.

    Pathak et al. 2017 (arXiv:1705.05363). The encoder learns from the inverse model only, so that features are what an
    action can influence; the forward model predicts them detached, or it could make them predictable by emptying them.
    """

    def __init__(self, state_dim: int, action_dim: int, feature_dim: int = 64, hidden_dim: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(state_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, feature_dim),
            nn.LayerNorm(feature_dim, elementwise_affine=False),
        )
        self.forward_model = nn.Sequential(
            nn.Linear(feature_dim + action_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, feature_dim)
        )
        self.inverse_model = nn.Sequential(
            nn.Linear(2 * feature_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, action_dim)
        )

    def forward(
        self, state: Float[Tensor, "B N"], next_state: Float[Tensor, "B N"], action: Float[Tensor, "B A"]
    ) -> Curiosity:
        """Loss and bonus of going from `state` to `next_state` by `action`, whose components are of order 1.

        The bonus is e / (e + c), e the forward model's squared error and c the squared change of the features: 0 for a
        change that was predicted, 1/2 for a prediction no better than none. It depends on no other query.
        """
        features, next_features = self.encoder(state), self.encoder(next_state)
        inverse_error = _mean_square(self.inverse_model(torch.cat([features, next_features], dim=-1)) - action)

        here, there = features.detach(), next_features.detach()
        predicted = here + self.forward_model(torch.cat([here, action], dim=-1))
        forward_error = _mean_square(predicted - there)

        surprise = forward_error.detach()
        return Curiosity(
            loss=(1.0 - FORWARD_SHARE) * inverse_error + FORWARD_SHARE * forward_error,
            bonus=surprise / (surprise + _mean_square(there - here) + 1e-8),
        )


def _mean_square(difference: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    return difference.square().mean(dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """What the refiner's own update needs of a refinement, detached from every other graph."""

    prompt: Float[Tensor, "B P"]
    control: Float[Tensor, "B D"]
    summary: Float[Tensor, "B F"]
    action: Float[Tensor, "B A"]
    """(u, v), before squashing."""
    noise: Float[Tensor, "B A"]
    """The standard normal draw that the action was made from."""
    refined: Float[Tensor, "B P"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinedPrompt:
    """A refinement of B prompts."""

    refined: Float[Tensor, "B P"]
    """The edited prompt; its derivative with respect to the prompt is the identity."""
    log_prob: Float[Tensor, " B"]
    """Log-density of the action in nats, summed over its P + 1 components; differentiable in policy and prompt."""
    delta: Float[Tensor, "B P"]
    """Delta, each component within +-rl_delta_scale."""
    alpha: Float[Tensor, "B 1"]
    """Share of Delta that is applied, 0 to 1."""
    transition: Transition


class PolicyRefinedAgent(nn.Module):
    """Actor, critic and curiosity over prompts; each refinement is an episode of one step.

    Its arguments are the keys of the configuration's section `refiner`. Those for its optimizer (`rl_lr`,
    `rl_grad_clip`, `alone_share`) and for the training step (`rewarded_share`, `draws`) change nothing in it.
    """

    def __init__(
        self,
        rewarded_share: float = 1.0,
        draws: int = 1,
        alone_share: float = 0.0,
        rl_prompt_dim: int = 256,
        rl_ctrl_dim: int = 256,
        rl_feat_dim: int = 32,
        rl_hidden: int = 512,
        rl_delta_scale: float = 0.2,
        rl_lr: float = 5e-5,
        rl_path_coef: float = 0.0,
        rl_entropy_coef: float = 0.01,
        rl_value_coef: float = 0.5,
        rl_icm_coef: float = 0.1,
        rl_grad_clip: float = 1.0,
    ) -> None:
        super().__init__()
        self.rewarded_share = rewarded_share
        self.draws = draws
        self.alone_share = alone_share
        self.rl_delta_scale = rl_delta_scale
        self.rl_lr = rl_lr
        self.rl_path_coef = rl_path_coef
        self.rl_entropy_coef = rl_entropy_coef
        self.rl_value_coef = rl_value_coef
        self.rl_icm_coef = rl_icm_coef
        self.rl_grad_clip = rl_grad_clip
        action_dim = rl_prompt_dim + 1
        self.trunk = nn.Sequential(
            nn.Linear(rl_prompt_dim + rl_ctrl_dim + rl_feat_dim, rl_hidden),
            nn.LayerNorm(rl_hidden),
            nn.SiLU(),
            nn.Linear(rl_hidden, rl_hidden),
            nn.SiLU(),
        )
        self.mean_head = nn.Linear(rl_hidden, action_dim)
        self.log_std_head = nn.Linear(rl_hidden, action_dim)
        self.value_head = nn.Linear(rl_hidden, 1)
        # An untrained policy prefers no direction, whatever the prompt, and an untrained critic no query.
        for head in (self.mean_head, self.log_std_head, self.value_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.curiosity = IntrinsicCuriosity(rl_prompt_dim + rl_feat_dim, action_dim)

    def refine_prompt(
        self,
        prompt: Float[Tensor, "B P"],
        control: Float[Tensor, "B D"],
        summary: Float[Tensor, "B F"],
        *,
        noise: Float[Tensor, "B A"] | None = None,
        deterministic: bool = False,
    ) -> RefinedPrompt:
        """Refine prompts: (1 - alpha) prompt + alpha (prompt + Delta), with (Delta, alpha) from the policy.

        `noise` is a standard normal draw of P + 1 numbers a query; without it, torch's global generator draws.
        `deterministic` takes the policy's mean instead. The action is a constant to autograd: the policy learns from
        `log_prob`, and the gradient of `refined` flows through the prompt alone.

        Raises:
            ValueError: both `noise` and `deterministic` are given.
        """
        if noise is not None and deterministic:
            raise ValueError("refine_prompt was given noise and deterministic=True: choose one of them.")
        with torch.autocast(prompt.device.type, enabled=False):
            prompt, control, summary = prompt.float(), control.float(), summary.float()
            policy, _ = self.policy_and_value(prompt, control, summary)
            if deterministic:
                noise = torch.zeros_like(policy.mean)
            elif noise is None:
                noise = torch.randn_like(policy.mean)
            action = policy.at(noise).detach()
            delta, alpha = policy.squash(action)
            # Equal to the mixture of the two prompts, without its rounding: where alpha Delta is 0, nothing changes.
            refined = prompt + alpha * delta
            log_prob = policy.log_prob(action)
        transition = Transition(
            prompt=prompt.detach(),
            control=control.detach(),
            summary=summary.detach(),
            action=action,
            noise=noise,
            refined=refined.detach(),
        )
        return RefinedPrompt(refined=refined, log_prob=log_prob, delta=delta, alpha=alpha, transition=transition)

    def rl_loss(
        self,
        transition: Transition,
        advantage: Float[Tensor, " B"],
        *,
        query_weight: Float[Tensor, " B"] | None = None,
        loss_gradient: Float[Tensor, "B P"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """`policy`, `value`, `entropy`, `icm`, the mean `curiosity` bonus, and `total`, means over the queries.

        total = policy + rl_value_coef value - rl_entropy_coef entropy + rl_icm_coef icm + rl_path_coef path. A query's
        return is its normalised advantage plus rl_icm_coef x bonus; the critic predicts it from the state, and the
        policy learns from what exceeds the prediction. Log-probability and entropy are sums over the P + 1 components,
        so that both scale alike; clipping bounds their gradient. Everything is recomputed on the detached transition.

        `loss_gradient` is the derivative of a loss, summed over the queries, in the refined prompts. The score function
        learns from a number a draw, this from one a component: path = sum of loss_gradient x alpha Delta, with (Delta,
        alpha) a function of mean, std and the noise (Kingma and Welling 2014, arXiv:1312.6114; Heess et al. 2015,
        arXiv:1510.09142). `path` is among the terms where rl_path_coef is above 0.
        """
        with torch.autocast(advantage.device.type, enabled=False):
            policy, value = self.policy_and_value(transition.prompt, transition.control, transition.summary)
            curiosity = self.curiosity(
                torch.cat([transition.prompt, transition.summary], dim=-1),
                torch.cat([transition.refined, transition.summary], dim=-1),
                torch.cat([transition.action[:, :-1].tanh(), transition.action[:, -1:].sigmoid()], dim=-1),
            )
            returns = advantage.detach().float() + self.rl_icm_coef * curiosity.bonus
            terms = {
                "policy": -query_mean((returns - value.detach()) * policy.log_prob(transition.action), query_weight),
                "value": query_mean((value - returns).square(), query_weight),
                "entropy": query_mean(policy.entropy(transition.noise), query_weight),
                "icm": query_mean(curiosity.loss, query_weight),
                "curiosity": query_mean(curiosity.bonus, query_weight),
            }
            total = (
                terms["policy"]
                + self.rl_value_coef * terms["value"]
                - self.rl_entropy_coef * terms["entropy"]
                + self.rl_icm_coef * terms["icm"]
            )
            if self.rl_path_coef and loss_gradient is not None:
                delta, alpha = policy.squash(policy.at(transition.noise))
                terms["path"] = (loss_gradient.detach().float() * alpha * delta).sum()
                total = total + self.rl_path_coef * terms["path"]
        return {**terms, "total": total}

    def policy_and_value(
        self, prompt: Float[Tensor, "B P"], control: Float[Tensor, "B D"], summary: Float[Tensor, "B F"]
    ) -> tuple[SquashedGaussian, Float[Tensor, " B"]]:
        """The policy in a state, and the return expected there."""
        hidden = self.trunk(torch.cat([prompt, control, summary], dim=-1))
        log_std = INITIAL_LOG_STD + LOG_STD_RANGE * self.log_std_head(hidden).tanh()
        policy = SquashedGaussian(mean=self.mean_head(hidden), std=log_std.exp(), delta_scale=self.rl_delta_scale)
        return policy, self.value_head(hidden).squeeze(-1)
