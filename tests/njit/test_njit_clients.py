"""Programs as users write them, compiled: a bandit that learns, a hidden Markov model, prange on every layer."""

import child
import numpy as np
import pytest
from registered import njit

import fastsoftmax as fs


def test_policy_gradient_of_a_bandit():
    """The exact policy gradient is p (r - p.r). Ascent finds the best arm."""

    @njit
    def gradient(logits, rewards):
        return fs.softmax_vjp(logits, rewards)

    @njit
    def learn(rewards, steps, rate):
        logits = np.zeros(rewards.size)
        for _ in range(steps):
            logits += rate * gradient(logits, rewards)
        return logits, fs.softmax(logits)

    rng = np.random.default_rng(4)
    rewards = rng.random(8)
    start = rng.normal(size=8)
    p = np.exp(start) / np.exp(start).sum()
    np.testing.assert_allclose(gradient(start, rewards), p * (rewards - p @ rewards), rtol=1e-12, atol=1e-16)
    logits, policy = learn(rewards, 4000, 2.0)
    assert policy.argmax() == rewards.argmax()
    assert policy @ rewards > rewards.max() - 0.01
    np.testing.assert_array_equal(policy, fs.softmax(logits))


@pytest.mark.slow
def test_reinforce_from_samples():
    """The same from sampled rewards. Minus the gradient of the log p of an arm is that of its cross-entropy."""

    @njit
    def learn(means, steps, rate, seed):
        np.random.seed(seed)  # noqa: NPY002  Numba's own generator
        logits = np.zeros(means.size)
        slope = np.empty(means.size)
        baseline = 0.0
        for step in range(steps):
            edges = np.cumsum(fs.softmax(logits))
            arm = min(np.searchsorted(edges, np.random.random()), means.size - 1)  # noqa: NPY002
            reward = means[arm] + 0.1 * np.random.standard_normal()  # noqa: NPY002
            fs.cross_entropy_grad(logits, arm, out=slope)
            logits -= rate * (reward - baseline) * slope
            baseline += (reward - baseline) / (step + 1)
        return fs.softmax(logits)

    means = np.array([0.2, 0.9, 0.4, 0.1])
    policy = learn(means, 3000, 0.3, 1)
    assert policy.argmax() == 1
    assert policy[1] > 0.9


def test_hidden_markov_model():
    """Forward-backward in log space, compared with products of probabilities, which work for short sequences."""

    @njit
    def forward_backward(log_start, log_move, log_emit):
        steps, states = log_emit.shape
        ahead = np.empty((steps, states))
        back = np.zeros((steps, states))
        ahead[0] = log_start + log_emit[0]
        for t in range(1, steps):
            ahead[t] = fs.logsumexp(log_move + ahead[t - 1].reshape(states, 1), axis=0) + log_emit[t]
        for t in range(steps - 2, -1, -1):
            back[t] = fs.logsumexp(log_move + (log_emit[t + 1] + back[t + 1]), axis=1)
        return fs.softmax(ahead + back), fs.logsumexp(ahead[-1])

    rng = np.random.default_rng(2)
    states, steps = 3, 12
    start = rng.dirichlet(np.ones(states))
    move = rng.dirichlet(np.ones(states), states)
    move[0, 2] = 0.0  # an impossible step: -inf in log space
    move[0] /= move[0].sum()
    emit = rng.random((steps, states))
    ahead, back = np.empty((steps, states)), np.ones((steps, states))
    ahead[0] = start * emit[0]
    for t in range(1, steps):
        ahead[t] = (ahead[t - 1] @ move) * emit[t]
    for t in range(steps - 2, -1, -1):
        back[t] = move @ (emit[t + 1] * back[t + 1])
    expected = ahead * back / (ahead * back).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        posterior, likelihood = forward_backward(np.log(start), np.log(move), np.log(emit))
    np.testing.assert_allclose(posterior, expected, rtol=1e-12)
    np.testing.assert_allclose(likelihood, np.log(ahead[-1].sum()), rtol=1e-12)
    long = np.tile(np.log(emit), (500, 1))  # here products of probabilities underflow to 0
    with np.errstate(divide="ignore"):
        posterior, likelihood = forward_backward(np.log(start), np.log(move), long)
    assert np.isfinite(likelihood)
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, rtol=1e-14)


PRANGE = """
import threading
import numpy as np
import numba
from numba import njit, prange
import fastsoftmax as fs
import fastsoftmax.njit.overloads

@njit(parallel=True)
def losses(logits, labels, probs):
    result = np.empty(len(logits))
    for i in prange(len(logits)):
        probs[i] = fs.softmax(logits[i])
        result[i] = fs.cross_entropy(logits[i], labels[i])
    return result

rng = np.random.default_rng(0)
logits, labels = rng.normal(size=(400, 6, 10)), rng.integers(0, 10, (400, 6))
probs = np.empty_like(logits)
found = losses(logits, labels, probs)
expected = [fs.cross_entropy(x, y) for x, y in zip(logits, labels)]
assert (probs == fs.softmax(logits)).all() and (found == expected).all()

def work():
    own = np.empty_like(logits)
    for _ in range(20):
        right.append((losses(logits, labels, own) == expected).all() and (own == probs).all())

right = []
threads = [threading.Thread(target=work) for _ in range({threads})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(right) == 20 * {threads} and all(right)
print(numba.threading_layer())
"""


@pytest.mark.parametrize(
    "layer", ["omp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("workqueue", "tbb"))]
)
def test_inside_prange(layer):
    """On every threading layer, and from several Python threads except on workqueue, which aborts then."""
    if layer != "workqueue":
        pytest.importorskip(f"numba.np.ufunc.{layer}pool", exc_type=ImportError)
    code = PRANGE.replace("{threads}", "1" if layer == "workqueue" else "3")
    printed = child.run(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS=2, timeout=400)
    assert printed == f"{layer}\n"


def test_from_several_threads():
    """Compiled functions with nogil run at the same time. Results are those of one thread."""
    from concurrent.futures import ThreadPoolExecutor

    @njit(nogil=True)
    def probabilities(x):
        return fs.softmax(x)

    x = np.random.default_rng(1).normal(size=(64, 300, 10))
    expected = fs.softmax(x)
    probabilities(x[0])
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(probabilities, x), expected, strict=True):
            np.testing.assert_array_equal(found, right)
