"""The refiner's action distribution: a Gaussian squashed into a bounded change of the prompt and its share."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    SigmoidTransform,
    TanhTransform,
)

# B queries, P prompt, A = P + 1 components of an action.


@dataclass(frozen=True, kw_only=True, slots=True)
class SquashedGaussian:
    """Delta = delta_scale tanh(u) and alpha = sigmoid(v), (u, v) ~ Normal(mean, std) with independent components.

    An action is handed around as (u, v), before squashing: (Delta, alpha) saturate, and u cannot be had back from them.
    """

    mean: Float[Tensor, "B A"]
    std: Float[Tensor, "B A"]
    delta_scale: float

    def at(self, noise: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """The action that standard normal `noise` stands for: mean + std x noise."""
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
