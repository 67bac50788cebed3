"""Uses of ragged rows: choices among sets of varying size, attention over a graph, and streams of tokens."""

from itertools import pairwise

import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

import fastsoftmax as fs

# --- discrete choice: the conditional logit of McFadden --------------------------------------------------------


class ConditionalLogit:
    """P(n chooses i) = exp(z_i . beta) / sum over n's alternatives j of exp(z_j . beta)."""

    def __init__(self, attributes, indptr, chosen):
        self.attributes, self.indptr, self.chosen = attributes, indptr, chosen

    def negative_log_likelihood(self, beta):
        utilities = self.attributes @ beta
        loss, slope = fs.segment_cross_entropy_with_grad(utilities, self.indptr, self.chosen, reduction="sum")
        return float(loss), self.attributes.T @ slope

    def information(self, beta):
        """The Hessian, column by column, from products with the Jacobian of the probabilities."""
        utilities = self.attributes @ beta
        columns = [fs.segment_softmax_jvp(utilities, self.indptr, column) for column in self.attributes.T]
        return self.attributes.T @ np.stack(columns, axis=1)

    def fit(self):
        start = np.zeros(self.attributes.shape[1])
        return scipy.optimize.minimize(
            self.negative_log_likelihood, start, jac=True, method="BFGS", options={"gtol": 1e-6}
        )


BETA = np.array([1.2, -0.7, 0.4, -2.0])


@pytest.fixture(scope="module")
def choices():
    """3000 choosers, each with 1 to 15 alternatives and a Gumbel error in every utility."""
    rng = np.random.default_rng(7)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(1, 16, 3000))])
    attributes = rng.normal(size=(indptr[-1], len(BETA)))
    utilities = attributes @ BETA + rng.gumbel(size=indptr[-1])
    chosen = [int(np.argmax(utilities[i:j])) for i, j in pairwise(indptr)]
    return ConditionalLogit(attributes, indptr, np.array(chosen))


def test_conditional_logit_recovers_its_parameters(choices):
    """Each is within three standard errors; jointly, the quadratic form is chi-squared with four degrees."""
    found = choices.fit()
    information = choices.information(found.x)
    error = found.x - BETA
    assert np.all(np.abs(error) <= 3 * np.sqrt(np.diag(np.linalg.inv(information))))
    assert error @ information @ error < 18.5  # exceeded once in a thousand
    assert np.abs(found.jac).max() < 1e-3
    assert np.linalg.eigvalsh(information).min() > 0


def test_conditional_logit_likelihood(choices):
    """With zero parameters every choice is random, and the fit is better. Gradients match difference quotients."""
    zero, gradient = choices.negative_log_likelihood(np.zeros(4))
    assert zero == pytest.approx(np.log(np.diff(choices.indptr)).sum(), rel=1e-14)
    assert choices.fit().fun < 0.7 * zero
    error = scipy.optimize.check_grad(
        lambda beta: choices.negative_log_likelihood(beta)[0],
        lambda beta: choices.negative_log_likelihood(beta)[1],
        np.zeros(4),
    )
    assert error < 1e-3 * np.linalg.norm(gradient)


def test_information_is_the_slope_of_the_gradient(choices):
    step = 1e-5
    numeric = [
        (choices.negative_log_likelihood(BETA + d)[1] - choices.negative_log_likelihood(BETA - d)[1]) / (2 * step)
        for d in step * np.eye(4)
    ]
    np.testing.assert_allclose(choices.information(BETA), numeric, rtol=1e-6, atol=1e-4)


# --- attention over the edges of a graph -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_graph_attention(dtype):
    """A layer of a graph attention network (Velickovic et al., arXiv:1710.10903) on CSR rows and on a dense mask.

    Both softmaxes are within 3 ulp. The result of nodes without neighbours is 0.
    """
    rng = np.random.default_rng(1)
    nodes, features = 120, 8
    graph = scipy.sparse.random_array((nodes, nodes), density=0.06, format="csr", rng=rng, dtype=dtype)
    graph = graph.tolil()
    graph[[3, 77]] = 0
    graph = graph.tocsr()
    assert (np.diff(graph.indptr) == 0).sum() >= 2
    hidden = rng.normal(size=(nodes, features)).astype(dtype)
    source, target = hidden @ rng.normal(size=(2, features, 1)).astype(dtype)
    rows = np.repeat(np.arange(nodes), np.diff(graph.indptr))
    scores = source[rows, 0] + target[graph.indices, 0]
    scores = np.where(scores > 0, scores, dtype(0.2) * scores)

    graph.data = fs.segment_softmax(scores, graph.indptr)

    mask = np.zeros((nodes, nodes), bool)
    mask[rows, graph.indices] = True
    dense = np.full((nodes, nodes), np.nan, dtype)
    dense[rows, graph.indices] = scores
    expected = fs.softmax(dense, where=mask)
    np.testing.assert_allclose(graph.toarray(), expected, rtol=6 * np.finfo(dtype).eps, atol=0)
    messages = graph @ hidden
    np.testing.assert_allclose(messages, expected @ hidden, rtol=0, atol=100 * np.finfo(dtype).eps)
    assert not messages[[3, 77]].any()


# --- perplexity of what a language model says ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["np.load", "np.memmap"])
def test_perplexity_of_memory_mapped_logits(how, tmp_path):
    """exp of the mean cross-entropy of a sequence, from a memory-mapped file, compared with mpmath."""
    rng = np.random.default_rng(2)
    tokens, vocabulary = 150, 40
    logits = (4 * rng.normal(size=(tokens, vocabulary))).astype(np.float32)
    said = rng.integers(0, vocabulary, tokens)
    # a model that predicts some tokens well
    logits[np.arange(tokens), said] += rng.choice([0, 3, 30], tokens).astype(np.float32)
    if how == "np.load":
        np.save(tmp_path / "logits.npy", logits)
        mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
    else:
        logits.tofile(tmp_path / "logits.bin")
        mapped = np.memmap(tmp_path / "logits.bin", np.float32, "r", shape=logits.shape)
    assert isinstance(mapped, np.memmap)

    perplexity = np.exp(np.float64(fs.cross_entropy(mapped, said)))
    by_segments = np.exp(
        np.float64(fs.segment_cross_entropy(mapped.reshape(-1), np.arange(0, mapped.size + 1, vocabulary), said))
    )

    surprise = mp.mpf(0)
    for row, token in zip(logits.tolist(), said.tolist(), strict=True):
        surprise += mp.log(mp.fsum(mp.exp(mp.mpf(value)) for value in row)) - mp.mpf(row[token])
    exact = float(mp.exp(surprise / tokens))
    # the mean is rounded to float32, and exp multiplies its relative error by the mean
    allowed = (1 + float(surprise / tokens)) * float(np.finfo(np.float32).eps)
    assert perplexity == pytest.approx(exact, rel=allowed)
    assert by_segments == pytest.approx(exact, rel=allowed)
    assert exact > 1


def test_perplexity_of_each_document(tmp_path):
    """Documents are segments of tokens of varying length; indptr gives the mean cross-entropy of each."""
    rng = np.random.default_rng(3)
    documents = np.array([0, 5, 6, 40, 100])
    logits = rng.normal(size=(100, 12))
    np.save(tmp_path / "logits.npy", logits)
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
    said = rng.integers(0, 12, 100)
    surprise = fs.cross_entropy(mapped, said, reduction="none")
    means = np.add.reduceat(surprise, documents[:-1]) / np.diff(documents)
    for n, (i, j) in enumerate(pairwise(documents)):
        assert means[n] == pytest.approx(fs.cross_entropy(logits[i:j], said[i:j]), rel=1e-14)
