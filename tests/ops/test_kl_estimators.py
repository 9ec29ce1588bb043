"""KL estimators by enumeration: over a small vocabulary every expectation is a finite sum."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from jax.test_util import check_grads

from alignax.losses.kl import kl as kl_loss
from alignax.ops import kl
from alignax.types import Rollout

RNG = np.random.default_rng(0)
LOGITS, REF_LOGITS = (jnp.asarray(RNG.normal(size=6), jnp.float32) for _ in range(2))
REF = jax.nn.log_softmax(REF_LOGITS)


def exact(logits):
    return kl.full_kl(jax.nn.log_softmax(logits), REF)


def reverse(logits):
    return kl.full_kl(REF, jax.nn.log_softmax(logits))


def expected_value(name, logits):
    logp = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logp) * kl.estimate(name, logp, REF))


def expected_gradient_in_loss(name, logits):
    """sum_a pi(a) grad k(a): the sampled actions are constants, the estimator is differentiated."""
    pi = jax.nn.softmax(logits)
    return jax.grad(lambda l: jnp.sum(pi * kl.estimate(name, jax.nn.log_softmax(l), REF)))(logits)


def expected_gradient_in_reward(name, logits):
    """sum_a pi(a) k(a) grad log pi(a): the estimator is a constant cost, as a policy gradient sees it."""
    logp = jax.nn.log_softmax(logits)
    cost = jnp.exp(logp) * kl.estimate(name, logp, REF)
    return jax.grad(lambda l: jnp.sum(cost * jax.nn.log_softmax(l)))(logits)


def test_full_kl_is_the_sum():
    p, q = np.exp(np.asarray(jax.nn.log_softmax(LOGITS), np.float64)), np.exp(np.asarray(REF, np.float64))
    np.testing.assert_allclose(exact(LOGITS), np.sum(p * np.log(p / q)), rtol=1e-5)
    # Two equal outcomes against 3/4, 1/4: 0.5 log(0.5 / 0.75) + 0.5 log(0.5 / 0.25) = 0.5 log(4 / 3)
    value = kl.full_kl(jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.75, 0.25]])))
    np.testing.assert_allclose(value, [0.5 * np.log(4 / 3)], rtol=1e-6)


def test_full_kl_with_impossible_outcomes():
    p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.25, 0.75, 0.0]))
    chex.assert_tree_all_finite(jax.value_and_grad(kl.full_kl, (0, 1))(p, q))
    assert kl.full_kl(q, jnp.log(jnp.array([1.0, 0.0, 0.0]))) == jnp.inf


@pytest.mark.parametrize("name, biased", [("k1", False), ("k2", True), ("k3", False), ("k3+k2", False)])
def test_expected_values(name, biased):
    error = abs(float(expected_value(name, LOGITS) - exact(LOGITS)))
    assert error > 1e-2 if biased else error < 1e-6
    near = REF_LOGITS + 0.01 * LOGITS  # k2 is right to second order
    np.testing.assert_allclose(expected_value(name, near), exact(near), rtol=0.02, atol=1e-8)


def test_gradients_in_the_loss():
    truth = jax.grad(exact)(LOGITS)
    assert np.linalg.norm(truth) > 0.1
    np.testing.assert_allclose(expected_gradient_in_loss("k1", LOGITS), 0, atol=1e-6)
    np.testing.assert_allclose(expected_gradient_in_loss("k2", LOGITS), truth, atol=1e-6)
    np.testing.assert_allclose(expected_gradient_in_loss("k3", LOGITS), jax.grad(reverse)(LOGITS), atol=1e-6)
    np.testing.assert_allclose(expected_gradient_in_loss("k3+k2", LOGITS), truth, atol=1e-6)


def test_straight_through_has_the_value_of_k3_and_the_gradient_of_k2_everywhere():
    logp = jnp.array([-1e3, -50.0, -2.0, -1.0, 0.0])
    sum_of = lambda name: jax.value_and_grad(lambda x: jnp.sum(kl.estimate(name, x, jnp.full(5, -1.0))))(logp)  # noqa: E731
    np.testing.assert_array_equal(sum_of("k3+k2")[0], sum_of("k3")[0])
    np.testing.assert_array_equal(sum_of("k3+k2")[1], sum_of("k2")[1])
    np.testing.assert_array_equal(kl.k3_k2(logp, logp), 0)


# ---- two tokens: the second distribution depends on the first token, so the first token changes the KL to come

SEQUENCE_REF = jnp.float32([[0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 0, 0.5]])
# the KL of the second token is 0 after the first token 0, and not after 1 and 2
SEQUENCE = jnp.float32([[0, 1, -1], [1, 0, 0], [2, 0, 0], [0, 0, -3]])


def sequences(table):
    """Log-probabilities of both tokens of all nine sequences, [3, 3, 2]; row 0 of the table is the first token's."""
    logp = jax.nn.log_softmax(table)
    return jnp.stack([jnp.broadcast_to(logp[0][:, None], (3, 3)), logp[1:]], axis=-1)


def sequence_kl(table):
    logp = sequences(table).sum(-1)
    return kl.full_kl(logp.reshape(-1), sequences(SEQUENCE_REF).sum(-1).reshape(-1))


def test_k1_in_the_reward_is_the_whole_kl_of_a_sequence():
    # policy gradient with the KL to go as the cost of each token, as the returns of PPO with gamma = 1 are
    logp = sequences(SEQUENCE)
    cost = kl.estimate("k1", logp, sequences(SEQUENCE_REF))
    to_go = jnp.stack([cost.sum(-1), cost[..., 1]], axis=-1)
    pi = jnp.exp(logp.sum(-1))[..., None]
    np.testing.assert_allclose(jnp.sum(pi * cost), sequence_kl(SEQUENCE), rtol=1e-5)
    got = jax.grad(lambda table: jnp.sum(pi * to_go * sequences(table)))(SEQUENCE)
    np.testing.assert_allclose(got, jax.grad(sequence_kl)(SEQUENCE), atol=1e-6)


@pytest.mark.parametrize("name", ["k2", "k3+k2"])
def test_a_sum_in_the_loss_lacks_what_a_token_does_to_the_kl_of_later_ones(name):
    logp, ref = sequences(SEQUENCE), sequences(SEQUENCE_REF)
    pi = jnp.exp(logp.sum(-1))[..., None]
    got = jax.grad(lambda table: jnp.sum(pi * kl.estimate(name, sequences(table), ref)))(SEQUENCE)
    whole = jax.grad(sequence_kl)(SEQUENCE)
    np.testing.assert_allclose(got[1:], whole[1:], atol=1e-6)  # nothing comes after the second token
    later = kl.full_kl(jax.nn.log_softmax(SEQUENCE)[1:], jax.nn.log_softmax(SEQUENCE_REF)[1:])
    missing = jax.grad(lambda first: jnp.sum(jax.nn.softmax(first) * later))(SEQUENCE[0])
    np.testing.assert_allclose(got[0] + missing, whole[0], atol=1e-6)
    assert np.linalg.norm(missing) > 0.05


def test_gradients_in_the_reward():
    truth, back = jax.grad(exact)(LOGITS), jax.grad(reverse)(LOGITS)
    np.testing.assert_allclose(expected_gradient_in_reward("k1", LOGITS), truth, atol=1e-6)
    np.testing.assert_allclose(expected_gradient_in_reward("k3", LOGITS), truth - back, atol=1e-6)
    # Near the reference the true gradient shrinks like the distance; those of k2 and k3 like its square.
    np.testing.assert_allclose(expected_gradient_in_reward("k3+k2", LOGITS), truth - back, atol=1e-6)
    for name in ("k2", "k3", "k3+k2"):
        shares = [
            np.linalg.norm(expected_gradient_in_reward(name, REF_LOGITS + step * LOGITS))
            / np.linalg.norm(jax.grad(exact)(REF_LOGITS + step * LOGITS))
            for step in (0.1, 0.01)
        ]
        assert shares[1] < 0.2 * shares[0] < 0.05


@pytest.mark.parametrize("name", ["k2", "k3", "k3+k2"])
def test_minimising_moves_towards_the_reference(name):
    after = LOGITS - 0.1 * expected_gradient_in_loss(name, LOGITS)
    assert exact(after) < exact(LOGITS)


# ---- in the loss of a rollout that an older policy sampled


def drifted(target):
    """Logits at KL(LOGITS || them) = target, away from the reference: the policy has learnt since it sampled."""
    sampler, away = np.asarray(LOGITS, np.float64), np.asarray(LOGITS - REF_LOGITS, np.float64)
    logp = lambda x: x - np.log(np.exp(x).sum())  # noqa: E731
    distance = lambda t: np.sum(np.exp(logp(sampler)) * (logp(sampler) - logp(sampler + t * away)))  # noqa: E731
    low, high = 0.0, 2.0
    for _ in range(60):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < target else (low, middle)
    return jnp.float32(sampler + low * away)


def expected_in_loss(logits, estimator, weighted):
    """The expectation under the sampler LOGITS of `losses.kl`, every outcome a token: value and gradient."""
    old_logp = jax.nn.log_softmax(LOGITS)
    every = jnp.ones((1, 6), bool)

    def value(logits):
        rollout = Rollout(tokens=jnp.arange(6)[None], valid=every, mask=every, old_logp=old_logp[None],
                          logp=jax.nn.log_softmax(logits)[None], ref_logp=REF[None])  # fmt: skip
        found = kl_loss(rollout, estimator=estimator, importance_weighted=weighted)
        return jnp.sum(jnp.exp(old_logp) * found.value[0])

    return jax.value_and_grad(value)(logits)


@pytest.mark.parametrize("drift, k2_off", [(0.0013, 0.033), (0.019, 0.132), (0.14, 0.477)])
def test_the_weight_makes_the_gradient_that_of_the_kl_however_far_the_policy_has_moved(drift, k2_off):
    logits = drifted(drift)
    truth = jax.grad(exact)(logits)
    off = lambda found: np.linalg.norm(found - truth) / np.linalg.norm(truth)  # noqa: E731
    for estimator in ("k2", "k3", "k3+k2"):
        value, gradient = expected_in_loss(logits, estimator, True)
        assert off(gradient) < 2e-6
        np.testing.assert_allclose(value, expected_value(estimator, logits), rtol=1e-5)  # on-policy, of the policy
    for estimator in ("k2", "k3+k2"):
        np.testing.assert_allclose(off(expected_in_loss(logits, estimator, False)[1]), k2_off, atol=1e-3)
    assert off(expected_in_loss(logits, "k3", False)[1]) > 0.3  # which has the gradient of another divergence


def test_the_weighted_gradient_is_that_of_k3_times_a_ratio_which_is_differentiated():
    # token by token, with the ratio as TRL and DeepSeek-V3.2 have it
    logp, old, ref = (jnp.asarray(RNG.normal(-2, 0.7, (1, 9)), jnp.float32) for _ in range(3))
    every = jnp.ones((1, 9), bool)
    rollout = Rollout(tokens=jnp.zeros((1, 9), jnp.int32), valid=every, mask=every, old_logp=old, ref_logp=ref)
    want = jax.grad(lambda x: jnp.sum(jnp.exp(x - old) * kl.k3(x, ref)))(logp)
    for estimator in ("k2", "k3", "k3+k2"):
        got = jax.grad(lambda x, e=estimator: jnp.sum(kl_loss(rollout.replace(logp=x), estimator=e).value))(logp)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got, jnp.exp(logp - old) * (logp - ref), rtol=1e-5)


def test_placement_follows_the_gradients():
    for name, placement in [("k1", "reward"), ("k2", "loss"), ("k3", "loss"), ("k3+k2", "loss")]:
        kl.check_placement(name, placement)
    for name, placement, word in [
        ("k1", "loss", "gradient"),
        ("k2", "reward", "vanishes"),
        ("k3", "reward", "KL(ref || pi)"),
        ("k3+k2", "reward", "nothing"),
    ]:
        with refuses(ValueError, f"'{name}' in the {placement}", word):
            kl.check_placement(name, placement)
    # every pair is either one of the four or refused: none is left without a verdict
    assert len(kl.REFUSED) + 4 == 2 * len(kl.ESTIMATORS)
    with refuses(ValueError, "'k4'", "k1, k2, k3, k3+k2"):
        kl.check_placement("k4", "loss")
    with pytest.raises(ValueError, match="placement = 'advantage'"):
        kl.check_placement("k1", "advantage")
    with pytest.raises(ValueError, match="'K1'"):
        kl.estimate("K1", LOGITS, REF)


def test_k3_by_hand_and_under_large_drift():
    # ref/pi = e^x: e^x - 1 - x. x = 1: 0.718282; x = -1: e^-1 = 0.367879. Near 0 it is x^2 / 2, without cancellation.
    np.testing.assert_allclose(kl.k3(jnp.array([0.0, 0.0]), jnp.array([1.0, -1.0])), [np.e - 2, 1 / np.e], rtol=1e-6)
    np.testing.assert_allclose(kl.k3(jnp.zeros(1), jnp.array([1e-3])), [5.0e-7], rtol=2e-3)
    drift = jnp.array([-1e3, -50.0, -15.0, -5.0, 5.0, 50.0, 1e3])
    value, grad = jax.vmap(jax.value_and_grad(lambda logp: kl.k3(logp, jnp.float32(0.0))))(drift)
    assert np.isfinite(value).all() and (np.diff(value[:4]) < 0).all() and (np.diff(value[4:]) > 0).all()
    assert np.isfinite(grad).all() and (np.sign(grad) == np.sign(drift)).all()  # never 0, never the wrong way


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_check_grads(name):
    f = jax.jit(lambda a, b: kl.estimate(name, a, b))  # jitted, because check_grads calls it with NumPy arrays
    check_grads(f, (jnp.array([-1.0, -2.5]), jnp.array([-1.2, -2.0])), order=1, eps=1e-2, rtol=2e-3, atol=2e-3)


def test_adaptive_controller():
    args = {"target": 6.0, "horizon": 10_000.0, "batch_size": 512}
    np.testing.assert_allclose(kl.adaptive_kl(0.15, 6.0, **args), 0.15, rtol=1e-7)  # the fixed point
    # KL 6.6 is 10 % above: 0.15 (1 + 0.1 * 512 / 10000); KL 60 and 0 are clipped to +-20 %.
    np.testing.assert_allclose(kl.adaptive_kl(0.15, 6.6, **args), 0.15 * 1.00512, rtol=1e-6)
    np.testing.assert_allclose(kl.adaptive_kl(0.15, 60.0, **args), 0.15 * 1.01024, rtol=1e-6)
    np.testing.assert_allclose(kl.adaptive_kl(0.15, -3.0, **args), 0.15 * 0.98976, rtol=1e-6)
    assert kl.fixed_kl(0.15, 60.0) == jnp.float32(0.15)


@pytest.mark.parametrize("value", [0.0, -5.0, 2.0, 9.0])
@pytest.mark.parametrize("episodes", [64, 320, 321, 1600, 2048, 100_000])
def test_adaptive_controller_is_never_negative(episodes, value):
    # 2048 episodes of a horizon of 320 at a KL of 0: the published factor would be 1 - 0.2 * 6.4 = -0.28. As 7 batches
    # of 0.914 horizons each, it is (1 - 0.2 * 0.914)^7 = 0.243
    args = {"target": 3.0, "horizon": 320.0, "batch_size": episodes}
    error = np.clip(value / 3.0 - 1.0, -0.2, 0.2)
    horizons = min(episodes / 320, 10)  # no batch moves it by more than 10 horizons would
    parts = max(int(np.ceil(horizons)), 1)
    want = 0.05 * (1 + error * horizons / parts) ** parts
    got = kl.adaptive_kl(0.05, value, **args)
    np.testing.assert_allclose(got, want, rtol=2e-5)
    assert got >= 0 and np.sign(got - 0.05) == np.sign(error)
    if episodes <= 320:  # the published rule, to the last bit
        published = jnp.float32(0.05) * (1.0 + jnp.clip(jnp.float32(value) / 3.0 - 1.0, -0.2, 0.2) * episodes / 320.0)
        np.testing.assert_array_equal(got, published)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_kl_that_is_not_finite_is_no_error_to_follow(value):
    assert kl.adaptive_kl(0.05, value, target=3.0, horizon=320.0, batch_size=64) == np.float32(0.05)
    coef, memory = kl.pid_kl(0.05, value, target=3.0)
    assert coef == np.float32(0.05) and np.isfinite(jax.tree.leaves(memory)).all()


@pytest.mark.parametrize("name", ["target", "horizon", "batch_size"])
def test_adaptive_controller_refuses_what_is_not_positive(name):
    for wrong in (0, -1) if name == "batch_size" else (np.nan, 0.0, -1.0):
        with refuses(ValueError, f"adaptive_kl: {name} = {wrong}:", "expected"):
            kl.adaptive_kl(0.05, 1.0, **{"target": 3.0, "horizon": 320.0, "batch_size": 64, name: wrong})


def test_adaptive_controller_finds_the_target():
    """Closed loop on a policy whose KL is 1 / coef: the coefficient must settle where that is the target."""
    coef = jnp.float32(1.0)
    for _ in range(300):
        coef = kl.adaptive_kl(coef, 1 / coef, target=4.0, horizon=10.0, batch_size=1)
    np.testing.assert_allclose(1 / coef, 4.0, rtol=1e-3)


def pid(coef, kls, **args):
    """Coefficients and the memory after each of `kls`, from a fresh memory."""
    memory, out = kl.START, []
    for value in kls:
        coef, memory = kl.pid_kl(coef, value, memory, **{"target": 4.0, **args})
        out.append(float(coef))
    return out, memory


def test_pid_by_hand():
    # Target 4, errors of KL 4.4, 3.6, 8: 0.1, -0.1, 1 clipped to 0.2. kp 0.5, ki 0.1, kd 0.25. log coef moves by
    # 0.1 * 0.1 = 0.01; then 0.5 * -0.2 + 0.1 * -0.1 = -0.11 (no bend yet); then
    # 0.5 * 0.3 + 0.1 * 0.2 + 0.25 * (0.2 + 0.2 + 0.1) = 0.15 + 0.02 + 0.125 = 0.295.
    coefs, memory = pid(2.0, [4.4, 3.6, 8.0], kp=0.5, ki=0.1, kd=0.25)
    np.testing.assert_allclose(coefs, 2 * np.exp(np.cumsum([0.01, -0.11, 0.295])), rtol=1e-5)
    np.testing.assert_allclose(memory, [0.2, -0.1, 3.0], rtol=1e-5)
    assert kl.PidMemory(0.0, 0.0, 0.0) == kl.START


def test_pid_stays_at_the_target_and_stays_positive():
    np.testing.assert_array_equal(pid(0.3, [4.0] * 5, kd=1.0)[0], np.float32(0.3))
    assert min(pid(0.3, [0.0, 1e9, -3.0, 0.0] * 50, kp=5.0, ki=1.0, kd=1.0)[0]) > 0


def test_pid_with_the_integral_alone_is_the_adaptive_controller():
    # to first order in ki = batch_size / horizon: exp(x) against 1 + x, and x is at most 0.2 ki = 0.002
    args = {"target": 4.0, "horizon": 1000.0, "batch_size": 10}
    want, coef = [], 0.3
    for value in (3.0, 4.2, 9.0, 0.0):
        coef = kl.adaptive_kl(coef, value, **args)
        want.append(float(coef))
    got, _ = pid(0.3, (3.0, 4.2, 9.0, 0.0), kp=0.0, ki=0.01)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert abs(want[0] / 0.3 - 1) > 1e-3  # which is a hundred times the tolerance


def closed_loop(steps=400, lag=0.9, **gains):
    """KL of a policy that follows the coefficient late: log KL moves a tenth of the way to log(1 / coef) per step."""

    def step(carry, _):
        log_kl, coef, memory = carry
        log_kl = lag * log_kl - (1 - lag) * jnp.log(coef)
        coef, memory = kl.pid_kl(coef, jnp.exp(log_kl), memory, target=4.0, clip=0.5, **gains)
        return (log_kl, coef, memory), jnp.exp(log_kl)

    start = jnp.float32(0.0), jnp.float32(1.0), jax.tree.map(jnp.float32, kl.START)
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, start, length=steps)[1])())


def test_pid_finds_the_target_and_the_proportional_part_damps_the_swings():
    swings = {kp: np.abs(np.log(closed_loop(kp=kp, ki=0.2) / 4.0))[60:].max() for kp in (0.0, 1.0)}
    assert swings[1.0] < 0.3 * swings[0.0], swings
    np.testing.assert_allclose(closed_loop(kp=1.0, ki=0.2)[-1], 4.0, rtol=1e-3)
    assert np.abs(closed_loop(kp=1.0, ki=0.2, kd=1.0) - closed_loop(kp=1.0, ki=0.2)).max() > 1e-2  # kd is read


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"clip": 0.0}, {"kp": -1.0}, {"ki": -1.0}, {"kd": -1.0}])
def test_pid_refuses(wrong):
    ((name, value),) = wrong.items()
    with refuses(ValueError, f"pid_kl: {name} = {value}:", "expected"):
        pid(0.1, [1.0], **wrong)
