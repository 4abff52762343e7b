"""Action distributions as small pytrees. The batch axes come first; an event is one action."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from purerl.core.types import PRNGKey, Scalar

_LOG_2PI = 1.8378770664093453
_LOG_2 = 0.6931471805599453


class Distribution(Protocol):
    """What a policy gives in each state: a pytree of statistics `[..., K]`, over actions as the env takes them."""

    def sample(self, key: PRNGKey) -> Array: ...

    def mode(self) -> Array: ...

    def log_prob(self, action: Any) -> Float[Array, "*batch"]: ...

    def entropy(self) -> Float[Array, "*batch"]: ...

    def kl(self, other: Any) -> Float[Array, "*batch"]: ...


class Categorical(NamedTuple):
    """A distribution over 0 .. A-1 with logits `[..., A]`."""

    logits: Float[Array, "*batch A"]

    def sample(self, key: PRNGKey) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, self.logits)

    def mode(self) -> Int[Array, "*batch"]:
        return self.logits.argmax(-1)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        return at_action(jax.nn.log_softmax(self.logits), action)

    def entropy(self) -> Float[Array, "*batch"]:
        """In nats."""
        return -jnp.sum(jax.nn.softmax(self.logits) * jax.nn.log_softmax(self.logits), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self || other) in nats."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


class Gaussian(NamedTuple):
    """Independent normals over D dimensions: mean `[..., D]`, log standard deviation the same or `[D]` for all."""

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*#batch D"]

    def sample(self, key: PRNGKey) -> Float[Array, "*batch D"]:
        noise = jax.random.normal(key, self.mean.shape)
        return self.mean + jnp.exp(self._log_std) * noise

    def mode(self) -> Float[Array, "*batch D"]:
        return self.mean

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        z = (action - self.mean) * jnp.exp(-self._log_std)
        return -jnp.sum(jnp.square(z) / 2 + self._log_std + _LOG_2PI / 2, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """In nats."""
        return jnp.sum(self._log_std + (1 + _LOG_2PI) / 2, axis=-1)

    def kl(self, other: "Gaussian") -> Float[Array, "*batch"]:
        """KL(self || other) in nats."""
        ratio = jnp.exp(2 * (self._log_std - other._log_std))
        shift = jnp.square((self.mean - other.mean) * jnp.exp(-other._log_std))
        return jnp.sum((ratio + shift - 1) / 2 + other._log_std - self._log_std, axis=-1)

    @property
    def _log_std(self) -> Float[Array, "*batch D"]:
        return jnp.broadcast_to(self.log_std, self.mean.shape)


class TanhGaussian(NamedTuple):
    """tanh of a `Gaussian`: actions strictly inside (-1, 1).

    The density is over the action a = tanh(u); log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2u)),
    which is finite for every u. Source: Haarnoja et al. (2018), arXiv:1801.01290, appendix C.
    """

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*#batch D"]

    @property
    def base(self) -> Gaussian:
        return Gaussian(self.mean, self.log_std)

    def sample(self, key: PRNGKey) -> Float[Array, "*batch D"]:
        return jnp.tanh(self.base.sample(key))

    def at(self, noise: Float[Array, "*batch D"]) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """The action tanh(mean + std noise) and its log density: a draw, where the noise is standard normal."""
        log_std = jnp.broadcast_to(self.log_std, self.mean.shape)
        u = self.mean + jnp.exp(log_std) * noise
        log_base = -(jnp.square(noise) / 2 + log_std + _LOG_2PI / 2).sum(-1)
        return jnp.tanh(u), log_base - _log_det_tanh(u)

    def mode(self) -> Float[Array, "*batch D"]:
        """tanh of the mean: the median of the action, and what deterministic evaluation uses."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Actions at or beyond -1 and 1 count as the nearest representable inner action."""
        limit = 1 - jnp.finfo(action.dtype).eps
        u = jnp.arctanh(jnp.clip(action, -limit, limit))
        return self.base.log_prob(u) - _log_det_tanh(u)


def _log_det_tanh(u: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    """log of the volume by which tanh stretches space at u."""
    return (2 * (_LOG_2 - u - jax.nn.softplus(-2 * u))).sum(-1)


def ornstein_uhlenbeck(key: PRNGKey, noise: Float[Array, "*shape"], theta: Scalar) -> Float[Array, "*shape"]:
    """The next value of standard normal noise that persists: it keeps 1 - theta of itself, theta in (0, 1].

    Variance stays 1 whatever theta, which is 1 for independent draws; its correlation with itself k steps later is
    (1 - theta)^k. Source: Uhlenbeck and Ornstein (1930), doi:10.1103/PhysRev.36.823, sampled once a step.
    """
    return (1 - theta) * noise + jnp.sqrt(theta * (2 - theta)) * jax.random.normal(key, noise.shape)


def epsilon_greedy(
    key: PRNGKey, q: Float[Array, "*batch A"], epsilon: Scalar, *, random_ties: bool = False
) -> Int[Array, "*batch"]:
    """argmax_a q `[..., A]`, but with probability epsilon a uniform action; `[...]`.

    random_ties: of several largest entries any, with the same probability; otherwise the first.
    """
    num_actions = q.shape[-1]
    draw = jax.random.uniform(key, q.shape[:-1])
    # Below epsilon the draw is uniform on [0, epsilon), so it can also say which action: one draw, not two.
    random_action = jnp.minimum(draw / jnp.maximum(epsilon, 1e-8) * num_actions, num_actions - 1).astype(jnp.int32)
    if not random_ties:
        return jnp.where(draw < epsilon, random_action, q.argmax(-1))
    best = q == q.max(-1, keepdims=True)
    number, rest = jnp.cumsum(best, -1), (draw - epsilon) / jnp.maximum(1 - epsilon, 1e-8)  # uniform on [0, 1) above it
    passed = number <= jnp.floor(jnp.clip(rest, 0.0, 1 - 1e-6) * number[..., -1])[..., None]
    return jnp.where(draw < epsilon, random_action, passed.sum(-1))


def at_action(q: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Q(s, a) `[...]` of the given actions, from Q(s, .) `[..., A]`."""
    return jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]
