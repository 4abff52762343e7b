"""PPO's choice of surrogate, and what follows the KL: values and gradients by hand, and each rule by number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import ppo
from purerl.core.distributions import Categorical, Gaussian
from purerl.core.policies import Params
from tests import tiny

KEY = jax.random.key(0)
BETA, CLIP_EPS = 2.0, 0.2
SURROGATES = ("clip", "kl", "adaptive_kl", "none")
# Four samples; the advantages are standardised already.
ADVANTAGE = np.array([1.0, -1.0, -1.0, 1.0])


def objective(old: Any, pi: Any, action: Any, surrogate: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """-loss of a policy whose parameters are its statistics, its gradient in them, and the metrics."""
    monkeypatch.setattr(ppo, "distribution", lambda actor, obs, config: actor)
    monkeypatch.setattr(ppo, "critic", lambda params, obs, config: jnp.zeros(4))
    zero, advantage = jnp.zeros(4), jnp.asarray(ADVANTAGE, jnp.float32)
    batch = ppo.Batch(jnp.zeros((4, 4)), action, old, old.log_prob(action), zero, advantage, zero)
    # Were kl_coef read in place of beta, or clip_eps of the field in place of the one given, the numbers would differ.
    config = tiny.config(ppo, surrogate=surrogate, vf_coef=0.0, ent_coef=0.0, kl_coef=7.0, clip_eps=0.5)
    loss = lambda pi: ppo.loss(Params(pi, None), batch, BETA, CLIP_EPS, config)  # noqa: E731
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(pi)
    return -value, jax.tree.map(jnp.negative, grads), metrics


def expected(surrogate: str, ratio: Any, inside: Any, kl: Any) -> tuple[np.ndarray, float]:
    """Which ratios the gradient passes, and the value. inside: the ratio, or the end of [0.8, 1.2] that counts."""
    penalty = BETA * np.mean(kl) if "kl" in surrogate else 0.0
    counted = inside if surrogate == "clip" else ratio
    return counted == ratio, np.mean(counted * ADVANTAGE) - penalty


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_discrete_surrogates_by_hand(surrogate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy takes action 0 with 3/4 now, and took it with 1/2 in two states and with 3/5 in the others.

    Ratios 0.75 / 0.5, 0.25 / 0.5, 0.75 / 0.6, 0.25 / 0.4 = 1.5, 0.5, 1.25, 0.625; of the first two, which went where
    their advantages ask for, the clip counts 1.2 and 0.8. The gradient of r in the logits is r (1_a - p), that of
    KL(old || new) is p - p_old.
    """
    old, p = np.array([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4], [0.6, 0.4]]), np.array([[0.75, 0.25]] * 4)
    action, ratio = np.array([0, 1, 0, 1]), np.array([1.5, 0.5, 1.25, 0.625])
    kl = [np.log(4 / 3) / 2] * 2 + [0.6 * np.log(0.8) + 0.4 * np.log(1.6)] * 2
    passes, value = expected(surrogate, ratio, np.array([1.2, 0.8, 1.25, 0.625]), kl)
    gradient = (passes * ratio * ADVANTAGE)[:, None] * (np.eye(2)[action] - p)
    if "kl" in surrogate:
        gradient -= BETA * (p - old)
    policies = (Categorical(jnp.log(jnp.asarray(x, jnp.float32))) for x in (old, p))
    given, grads, metrics = objective(*policies, jnp.asarray(action), surrogate, monkeypatch)
    np.testing.assert_allclose(given, value, rtol=1e-5)
    np.testing.assert_allclose(grads.logits, gradient / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["policy_loss"], -value, rtol=1e-5)
    assert metrics["clip_fraction"] == 1
    assert ("kl" in metrics) == ("kl" in surrogate)
    np.testing.assert_allclose(metrics.get("kl", np.mean(kl)), np.mean(kl), rtol=1e-5)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_continuous_surrogates_by_hand(surrogate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N(0, 1) has become N(1/2, 2^2); of z = (a - 1/2) / 2 the ratio is exp(a^2 / 2 - z^2 / 2) / 2.

    For the actions 0, 2, 0, -2 that is 0.48, 2.79, 0.48, 1.69; against the advantages -1, 1, 1, -1 the clip counts 0.8
    and 1.2 of the first two. The gradient of r is r z / 2 in the mean and r (z^2 - 1) in the log deviation.
    KL(old || new) = log 2 + (1 + 1/4) / 8 - 1/2, with the gradient (1/2) / 4 in the mean and 1 - (1 + 1/4) / 4 in the
    log deviation.
    """
    monkeypatch.setattr("tests.test_ppo_surrogate.ADVANTAGE", np.array([-1.0, 1.0, 1.0, -1.0]))
    action = np.array([0.0, 2.0, 0.0, -2.0])
    z = (action - 0.5) / 2
    ratio = np.exp(action**2 / 2 - z**2 / 2) / 2
    kl = np.log(2) + 1.25 / 8 - 0.5
    passes, value = expected(surrogate, ratio, np.array([0.8, 1.2, *ratio[2:]]), kl)
    signal, beta = passes * ratio * ADVANTAGE, BETA if "kl" in surrogate else 0.0
    old, pi = (Gaussian(jnp.full((4, 1), mean), jnp.full((4, 1), jnp.log(std))) for mean, std in ((0.0, 1.0), (0.5, 2)))
    given, grads, metrics = objective(old, pi, jnp.asarray(action, jnp.float32)[:, None], surrogate, monkeypatch)
    np.testing.assert_allclose(given, value, rtol=1e-5)
    np.testing.assert_allclose(grads.mean[:, 0], (signal * z / 2 - beta * 0.125) / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads.log_std[:, 0], (signal * (z**2 - 1) - beta * 0.6875) / 4, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics.get("kl", kl), kl, rtol=1e-5)


def test_none_is_a_clip_that_never_clips() -> None:
    """A whole update of a fast learner moves to the same parameters; the narrow clip does not."""
    start = jax.jit(lambda: ppo.init(KEY, tiny.config(ppo)))()

    def params(surrogate: str, clip_eps: float) -> list[np.ndarray]:
        fields = {"surrogate": surrogate, "clip_value": False, "learning_rate": 0.1, "num_epochs": 4}
        return tiny.arrays(update(start, tiny.config(ppo, clip_eps=clip_eps, **fields))[0].params)

    update = jax.jit(ppo.update)
    none, wide, narrow = params("none", 0.2), params("clip", 1e9), params("clip", 0.2)
    for x, y in zip(none, wide, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert max(np.abs(x - y).max() for x, y in zip(none, narrow, strict=True)) > 1e-2


# ---------------------------------------------------------------------------------------------------------------------
# beta


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.0199, 0.5), (0.0201, 1.0), (0.03, 1.0), (0.0449, 1.0), (0.0451, 2.0), (9.0, 2.0)],
)
def test_beta_follows_the_kl(kl: float, factor: float) -> None:
    """d_targ = 0.03: halves below 0.02, doubles above 0.045, and stays between."""
    config = tiny.config(ppo, target_kl=0.03)
    np.testing.assert_allclose(ppo.adapt_beta(jnp.float32(3.0), jnp.float32(kl), config), 3 * factor, rtol=1e-6)


def test_beta_can_always_come_back() -> None:
    """Neither 0, from where doubling leads nowhere, nor infinite, which times a KL of 0 is no number."""
    config = tiny.config(ppo, target_kl=0.03)
    for beta, kl, expected in (
        (0.0, 1.0, 1e-6),
        (1e-6, 0.0, 1e-6),
        (1e6, 1.0, 1e6),
        (1e-6, 1.0, 2e-6),
        (1e6, 0.0, 5e5),
    ):
        np.testing.assert_allclose(ppo.adapt_beta(jnp.float32(beta), jnp.float32(kl), config), expected, rtol=1e-6)


def test_beta_in_an_update() -> None:
    """d is the KL over the whole batch after all steps; the beta that was in use becomes the next one by it."""
    config = tiny.config(ppo, surrogate="adaptive_kl", learning_rate=0.03, kl_coef=3.0)
    start = jax.jit(lambda: ppo.init(KEY, config))()
    assert start.beta == 3.0
    config = config.replace(kl_coef=9.0)  # where beta started decides nothing any more
    update = jax.jit(ppo.update)
    after, metrics = update(start, config)
    _, batch, _ = jax.jit(ppo.collect)(jax.random.split(start.key, 3)[1], start, config)
    old, new = (jax.nn.softmax(ppo.distribution(x.params.actor, batch.obs, config).logits) for x in (start, after))
    d = float((old * np.log(old / new)).sum(-1).mean())
    assert d > 1e-3
    np.testing.assert_allclose(metrics["update_kl"], d, rtol=1e-3)
    for part, factor in ((0.6, 0.5), (0.7, 1.0), (1.4, 1.0), (1.6, 2.0)):
        state, metrics = update(start, config.replace(target_kl=d / part))
        assert (metrics["kl_coef"], state.beta) == (3.0, 3 * factor)
        tiny.assert_same_bits(state.params, after.params)  # target_kl decides nothing else
    tiny.assert_same_bits(update(start, config.replace(kl_coef=3.0))[0].params, after.params)
    # A larger beta allows less.
    _, metrics = update(start._replace(beta=jnp.float32(300.0)), config)
    assert metrics["kl_coef"] == 300 and metrics["update_kl"] < 0.7 * d


# ---------------------------------------------------------------------------------------------------------------------
# The learning rate


def by_distance(moved: Any) -> Any:
    """What is said to be the KL of a parameter that has moved so far."""
    return jnp.where(moved < 0.0045, 0.1, jnp.where(moved < 0.0125, 0.0, 0.01))


@pytest.mark.parametrize(("anneal", "annealing"), [(True, 0.75), (False, 1.0)])
def test_learning_rate_follows_the_kl_of_each_minibatch(
    anneal: bool, annealing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen steps of a parameter with a gradient that is always the same, so that Adam steps by the rate itself.

    The target is 0.03: a third less where the KL is 0.1, the same where it is 0, half as much again where it is 0.01,
    never above 1e-2 or below 1e-5; the step after a KL goes by it already. A quarter of the training is over, so
    annealing takes a quarter off each step, but not off the rate that is carried on.
    """
    seen, weight = [], lambda params: params.critic["params"]["body"]["Dense_1"]["bias"]

    def loss(params: Any, batch: Any, beta: Any, clip_eps: Any, config: Any) -> Any:
        moved = -weight(params).sum()  # from 0
        jax.debug.callback(lambda x: seen.append(float(x)), moved, ordered=True)
        return 3 * weight(params).sum(), {"kl": by_distance(moved)}

    monkeypatch.setattr(ppo, "loss", loss)
    fields = {"num_minibatches": 8, "total_timesteps": 4 * 16, "anneal_learning_rate": anneal, "target_kl": 0.03}
    config = tiny.config(ppo, adapt_learning_rate=True, **fields)
    start = jax.jit(lambda: ppo.init(KEY, config))()._replace(updates=jnp.int32(1))
    update, bounds = jax.jit(ppo.update), set()
    for first in (0.008, 1.4e-5):
        seen.clear()
        state, metrics = update(start._replace(learning_rate=jnp.float32(first)), config)
        jax.effects_barrier()
        rate, moved, path, rates = first, 0.0, [], []
        for _ in range(16):
            path.append(moved)
            kl = by_distance(moved)
            rate = min(max(rate * (1 / 1.5 if kl > 0.06 else 1.5 if 0 < kl < 0.015 else 1), 1e-5), 1e-2)
            rates.append(annealing * rate)
            moved += annealing * rate
        bounds |= {rate}
        np.testing.assert_allclose(seen, path, rtol=1e-3, atol=1e-8)
        np.testing.assert_allclose(state.learning_rate, rate, rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], np.mean(rates), rtol=1e-5)
    assert bounds == {1e-2, 1e-5}


def test_the_learning_rate_stays_until_something_has_moved() -> None:
    """One step an update is taken at the old policy itself, whose KL is 0. The rate starts as the Config says."""
    config = tiny.config(ppo, adapt_learning_rate=True, num_epochs=1, num_minibatches=1, learning_rate=3e-3)
    state = jax.jit(lambda: ppo.init(KEY, config))()
    assert state.learning_rate == jnp.float32(3e-3)
    after, metrics = jax.jit(ppo.update)(state, config)
    assert metrics["kl"] == 0 and after.learning_rate == state.learning_rate
    assert any((x != y).any() for x, y in zip(tiny.arrays(after.params), tiny.arrays(state.params), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The State


def test_the_state_keeps_what_is_asked_for() -> None:
    """beta and the learning rate are strongly typed before and after an update, and may differ by seed."""
    for surrogate in SURROGATES:
        for adapt in (False, True):
            config = tiny.config(ppo, surrogate=surrogate, adapt_learning_rate=adapt)
            state = jax.eval_shape(ppo.init, KEY, config)
            assert (state.beta is not None, state.learning_rate is not None) == (surrogate == "adaptive_kl", adapt)
    config = config.replace(surrogate="adaptive_kl")
    swept = lambda x: ppo.init(KEY, config.replace(kl_coef=x, learning_rate=x))  # noqa: E731
    state = jax.eval_shape(jax.vmap(swept), jnp.ones(3))
    assert state.beta.shape == state.learning_rate.shape == (3,)
    state = jax.eval_shape(ppo.init, KEY, config)
    after, _ = jax.eval_shape(ppo.update, state, config)
    for x, y in ((state.beta, after.beta), (state.learning_rate, after.learning_rate)):
        assert x.dtype == y.dtype == jnp.float32 and not x.weak_type and not y.weak_type
