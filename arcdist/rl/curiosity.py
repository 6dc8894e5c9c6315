"""Curiosity about what a refinement does: the intrinsic curiosity module of Pathak et al. 2017 (arXiv:1705.05363)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

# B queries, N numbers of a state, A components of an action, Z features.

FORWARD_SHARE = 0.2
"""beta of the paper: weight of the forward loss; the inverse loss has the rest."""
TINY = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Curiosity:
    """What the module makes of B transitions."""

    loss: Float[Tensor, " B"]
    """0.8 x inverse error + 0.2 x forward error."""
    bonus: Float[Tensor, " B"]
    """Intrinsic reward within [0, 1], detached."""


class IntrinsicCuriosity(nn.Module):
    """Features of a state that tell which action was taken, and a model of how an action changes them.

    The encoder learns from the inverse model only, as in the paper, so that features are what an action can influence;
    the forward model predicts them from outside, or it could make them predictable by making them empty.
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
        change foreseen, 1/2 for a prediction no better than none. Made from one query alone, it does not depend on
        which others are in the batch or on this process.
        """
        features, next_features = self.encoder(state), self.encoder(next_state)
        inverse_error = _mean_square(self.inverse_model(torch.cat([features, next_features], dim=-1)) - action)

        here, there = features.detach(), next_features.detach()
        foreseen = here + self.forward_model(torch.cat([here, action], dim=-1))
        forward_error = _mean_square(foreseen - there)

        unforeseen = forward_error.detach()
        return Curiosity(
            loss=(1.0 - FORWARD_SHARE) * inverse_error + FORWARD_SHARE * forward_error,
            bonus=unforeseen / (unforeseen + _mean_square(there - here) + TINY),
        )


def _mean_square(difference: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    return difference.square().mean(dim=-1)
