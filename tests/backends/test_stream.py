"""`fastsoftmax run`: results as in memory, files of any order and size, no unfinished results."""

import itertools
import json
import os
import pickle
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import child
import functions
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.backends import files, stream
from fastsoftmax.metrics import RunningMetrics
from fastsoftmax.tools import cli
from fastsoftmax.tools.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory is an empty one, and blocks are so small that every file has many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(stream, "TASK_BYTES", 1 << 11)
    monkeypatch.setattr(files, "LEAST_STRETCH", 1 << 5)
    return tmp_path


def logits(shape=(90, 11), dtype=np.float32):
    return (3 * np.random.default_rng(7).normal(size=shape)).astype(dtype)


def run(*arguments, status=0):
    assert main(["run", *map(str, arguments)]) == status


def names(directory="."):
    return sorted(os.listdir(directory))


# --- numbers --------------------------------------------------------------------------------------------------

SAME = {
    "softmax": [(), ("--temperature", 0.5)],
    "log-softmax": [()],
    "logsumexp": [()],
    "softmax-jacobian": [()],
    "softmax-jvp": [("--tangent", "v.npy")],
    "softmax-vjp": [("--cotangent", "v.npy", "--from-probs")],
    "log-softmax-jacobian": [()],
    "log-softmax-jvp": [("--tangent", "v.npy")],
    "log-softmax-vjp": [("--cotangent", "v.npy")],
    "filter-logits": [("--top-k", 3), ("--top-p", 0.7, "--min-p", 0.1, "--temperature", 0.5)],
}


def call(function, x, options):
    """The function in memory with the options of the command line."""
    flags = iter(options)
    keywords = {}
    for flag in flags:
        name = flag.lstrip("-").replace("-", "_")
        value = True if flag == "--from-probs" else next(flags)
        keywords[name] = np.load(value) if str(value).endswith(".npy") else value
    return getattr(fs, function.replace("-", "_"))(x, **keywords)


def usually(cases, few):
    """Parameters of which only a few are in every run; the others are slow, because they compile more kernels."""
    return [pytest.param(*case, marks=[] if n in few else pytest.mark.slow) for n, case in enumerate(cases)]


CALLS = [(function, options) for function, choices in SAME.items() for options in choices]


@pytest.mark.parametrize(("function", "options"), usually(CALLS, (0, 3, 5)))
def test_functions(function, options):
    x = logits()
    np.save("x.npy", x)
    np.save("v.npy", functions.vector_for(x.shape, -1, x.dtype))
    run(function, "x.npy", "-o", "y.npy", *options)
    expected = call(function, x, options)
    actual = np.load("y.npy")
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(actual, expected)
    assert names() == ["v.npy", "x.npy", "y.npy"]


LOSSES = [
    ("cross-entropy", "y.npy", (), {}),
    ("cross-entropy", "y.npy", ("--reduction", "sum"), {}),
    ("cross-entropy", "ignored.npy", ("--ignore-index", -100), {"ignore_index": -100}),
    ("cross-entropy", "t.npy", ("--class-weight", "w.npy", "--sample-weight", "s.npy"), {}),
    ("cross-entropy", "y.npy", ("--class-weight", "w.npy", "--label-smoothing", 0.1), {"label_smoothing": 0.1}),
    ("cross-entropy", "y.npy", ("--z-loss", 0.001, "--softcap", 20), {"z_loss": 0.001, "softcap": 20}),
    ("squared-error", "t.npy", (), {}),
    ("squared-error", "t.npy", ("--sample-weight", "s.npy"), {}),
]


@pytest.mark.parametrize(("function", "targets", "flags", "keywords"), usually(LOSSES, (0, 2, 5)))
def test_losses(function, targets, flags, keywords, capsys):
    x = logits()
    keywords = dict(keywords)
    np.save("x.npy", x)
    labels = functions.labels_for(x.shape, -1, None)
    np.save("y.npy", labels)
    np.save("ignored.npy", np.where(labels % 4 == 0, -100, labels))
    np.save("t.npy", functions.distributions_for(x.shape, -1, x.dtype))
    np.save("w.npy", np.linspace(0.5, 2, 11))
    np.save("s.npy", np.arange(90) % 3)
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if str(value).endswith(".npy") or flag == "--reduction":
            keywords[flag[2:].replace("-", "_")] = np.load(value) if flag != "--reduction" else value
    run(function, "x.npy", "--targets", targets, "--grad", "g.npy", *flags)
    name = function.replace("-", "_")
    loss, slope = getattr(fs, f"{name}_with_grad")(x, np.load(targets), **keywords)
    assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=2e-7)
    np.testing.assert_array_equal(np.load("g.npy"), slope)
    keywords["reduction"] = "none"
    flags = (*flags, "--reduction", "none", "-o", "rows.npy")
    run(function, "x.npy", "--targets", targets, *flags)
    np.testing.assert_array_equal(np.load("rows.npy"), getattr(fs, name)(x, np.load(targets), **keywords))
    assert capsys.readouterr().out == ""


PRODUCTS = [
    ((), {}),
    (("--bias", "b.npy", "--ignore-index", 3), {"ignore_index": 3}),
    (("--class-weight", "w.npy", "--sample-weight", "s.npy", "--reduction", "sum"), {"reduction": "sum"}),
    (("--label-smoothing", 0.1, "--z-loss", 0.01, "--softcap", 5), {"z_loss": 0.01, "softcap": 5}),
]


@pytest.mark.parametrize(("flags", "keywords"), usually(PRODUCTS, (1, 2)))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_losses_of_products(flags, keywords, dtype, capsys, monkeypatch):
    """The loss of features times weights, in blocks of rows, and the gradient with respect to the features."""
    monkeypatch.setattr(stream, "ROWS", 16)
    x, weight, labels = logits((9, 10, 6), dtype), logits((40, 6), dtype), np.arange(90).reshape(9, 10) % 40
    arrays = {"b": logits((40,), dtype), "w": np.linspace(0.5, 2, 40), "s": np.arange(90).reshape(9, 10) % 3}
    arrays |= {"x": x, "weight": weight, "y": labels}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    keywords = dict(keywords)
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if flag != "--reduction":
            keywords[flag[2:].replace("-", "_")] = np.load(value) if str(value).endswith(".npy") else value
    seen = []
    original = stream.loss_parts
    monkeypatch.setattr(stream, "loss_parts", lambda *a, **k: seen.append(a[1].shape) or original(*a, **k))
    operands = ("linear-cross-entropy", "x.npy", "--weight", "weight.npy", "--targets", "y.npy")
    run(*operands, "--grad", "g.npy", *flags)
    assert len(seen) > 2
    loss, gradients = fs.linear_cross_entropy_with_grad(x, weight, labels, **keywords)
    eps = float(np.finfo(dtype).eps)
    assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=4 * eps)
    slope = np.load("g.npy")
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope, gradients.features, rtol=8 * eps, atol=8 * eps * np.abs(slope).max())
    keywords["reduction"] = "none"
    run(*operands, *flags, "--reduction", "none", "-o", "rows.npy")
    rows = fs.linear_cross_entropy(x, weight, labels, **keywords)
    np.testing.assert_allclose(np.load("rows.npy"), rows, rtol=8 * eps)
    assert np.load("rows.npy").dtype == rows.dtype
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_gradients_of_weights(dtype, suffix, monkeypatch, capsys):
    """The sums over all blocks of rows, with or without the gradient of the features."""
    if suffix == "zarr":
        pytest.importorskip("zarr")
    monkeypatch.setattr(stream, "ROWS", 16)
    x, weight, bias = logits((9, 10, 6), dtype), logits((40, 6), dtype), logits((40,), dtype)
    labels = np.arange(90).reshape(9, 10) % 40
    for name, array in {"x": x, "weight": weight, "b": bias, "y": labels}.items():
        np.save(f"{name}.npy", array)
    given = ("linear-cross-entropy", "x.npy", "--weight", "weight.npy", "--targets", "y.npy", "--bias", "b.npy")
    given = (*given, "--ignore-index", 3)
    names = {"--grad": "features", "--grad-weight": "weight", "--grad-bias": "bias"}
    loss, gradients = fs.linear_cross_entropy_with_grad(x, weight, labels, bias, ignore_index=3)
    eps = float(np.finfo(dtype).eps)
    for flags in (tuple(names), ("--grad-weight",), ("--grad-bias",)):
        paths = {flag: f"{flag[2:]}.{suffix}" for flag in flags}
        run(*given, *itertools.chain(*paths.items()), "--force")
        assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=4 * eps)
        for flag, path in paths.items():
            found = files.source(Path(path))[...]
            expected = getattr(gradients, names[flag])
            assert found.dtype == dtype
            atol = 8 * eps * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=8 * eps, atol=atol)
    run(*given, "--reduction", "none", "--grad-weight", f"s.{suffix}")
    _, gradients = fs.linear_cross_entropy_with_grad(x, weight, labels, bias, ignore_index=3, reduction="none")
    found = files.source(Path(f"s.{suffix}"))[...]
    np.testing.assert_allclose(found, gradients.weight, rtol=8 * eps, atol=8 * eps * np.abs(found).max())


def test_gradients_of_weights_of_no_rows():
    """They are 0."""
    for name, array in {"x": logits((0, 6)), "w": logits((40, 6)), "y": np.zeros(0, int)}.items():
        np.save(f"{name}.npy", array)
    given = ("linear-cross-entropy", "x.npy", "--weight", "w.npy", "--targets", "y.npy", "--reduction", "sum")
    run(*given, "--grad-weight", "g.npy")
    np.testing.assert_array_equal(np.load("g.npy"), np.zeros((40, 6)))


def test_errors_of_products(capsys):
    """Wrong files are refused before any features are read; a wrong label with its position among all."""
    for name, array in {
        "x": logits((90, 6)),
        "weight": logits((40, 6)),
        "narrow": logits((40, 5)),
        "b": logits((39,)),
        "y": np.arange(90) % 41,
        "t": logits((90, 40)),
    }.items():
        np.save(f"{name}.npy", array)
    given = ("linear-cross-entropy", "x.npy")
    for flags, words in (
        (("--targets", "y.npy"), "needs --weight FILE"),
        (("--weight", "weight.npy"), "needs --targets FILE"),
        (("--weight", "narrow.npy", "--targets", "y.npy"), "weight has shape (40, 5), expected (K, 6)"),
        (("--weight", "weight.npy", "--targets", "y.npy", "--bias", "b.npy"), "bias has shape (39,)"),
        (("--weight", "weight.npy", "--targets", "t.npy"), "targets has shape (90, 40), expected (90,)"),
        (("--weight", "weight.npy", "--targets", "y.npy"), "targets[40] is 40, expected a label from 0 to 39"),
        (("--weight", "weight.npy", "--targets", "y.npy", "--axis", 0), "takes no --axis"),
        (("--weight", "weight.npy", "--targets", "y.npy", "--temperature", 2), "takes no --temperature"),
        (("--weight", "weight.npy", "--targets", "y.npy", "--softcap", 0), "softcap must be finite and > 0"),
        (
            ("--weight", "weight.npy", "--targets", "y.npy", "--grad-bias", "g.npy"),
            "--grad-bias needs --bias FILE",
        ),
        (
            ("--weight", "weight.npy", "--targets", "y.npy", "--grad", "g.npy", "--grad-weight", "./g.npy"),
            "--grad and --grad-weight are the same file",
        ),
    ):
        run(*given, *flags, status=2)
        assert words in capsys.readouterr().err
    run("cross-entropy", "x.npy", "--targets", "y.npy", "--weight", "weight.npy", status=2)
    assert "takes no --weight" in capsys.readouterr().err
    run("cross-entropy", "x.npy", "--targets", "y.npy", "--grad-weight", "g.npy", status=2)
    assert "takes no --grad-weight" in capsys.readouterr().err


BINARY = [
    ("binary-cross-entropy", (), {}),
    ("binary-cross-entropy", ("--label-smoothing", 0.1, "--sample-weight", "s.npy"), {"label_smoothing": 0.1}),
    ("binary-cross-entropy", ("--pos-weight", "w.npy", "--sample-weight", "r.npy"), {}),
    ("binary-cross-entropy", ("--pos-weight", "s.npy", "--reduction", "sum"), {"reduction": "sum"}),
    ("binary-focal-loss", ("--alpha", 0.3, "--gamma", 1.5), {"alpha": 0.3, "gamma": 1.5}),
]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(90, 11), (700,), (5, 4, 100), (0, 3), ()])
@pytest.mark.parametrize(("function", "flags", "keywords"), BINARY)
def test_losses_of_single_logits(function, flags, keywords, shape, order, capsys):
    """The bits of the call in memory, wherever the files are cut."""
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(0, 3, shape), "t": rng.random(shape) < 0.3, "s": rng.random(shape)}
    arrays |= {"w": rng.random(shape[-1:]), "r": rng.random((*shape[:1], *(1,) * (len(shape) - 1)))}
    for name, array in arrays.items():
        np.save(f"{name}.npy", np.asarray(array, order=order))
    files_of = {key: value for key, value in zip(flags[::2], flags[1::2], strict=True) if str(value).endswith("y")}
    given = keywords | {key[2:].replace("-", "_"): np.load(value) for key, value in files_of.items()}
    command = (function, "x.npy", "--targets", "t.npy", *flags)
    run(*command, "--grad", "g.npy")
    name = function.replace("-", "_")
    loss, slope = getattr(fs, f"{name}_with_grad")(arrays["x"], arrays["t"], **given)
    assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=3e-16, nan_ok=True)
    np.testing.assert_array_equal(np.load("g.npy"), slope)
    run(f"{function}-hessian-diag", *command[1:], "-o", "h.npy")
    expected = getattr(fs, f"{name}_hessian_diag")(arrays["x"], arrays["t"], **given)
    np.testing.assert_array_equal(np.load("h.npy"), expected)
    if "--reduction" not in flags:
        run(*command, "--reduction", "none", "-o", "l.npy")
        expected = getattr(fs, name)(arrays["x"], arrays["t"], **given, reduction="none")
        np.testing.assert_array_equal(np.load("l.npy"), expected)


def test_errors_of_single_logits(capsys):
    x = logits()
    t = (x > 0).astype(float)
    np.save("x.npy", x)
    np.save("short.npy", t[:50])
    np.save("text.npy", np.full(x.shape, "a"))
    np.save("w.npy", np.ones(7))
    t[70, 3] = 1.5
    np.save("t.npy", t)
    line = ["binary-cross-entropy", "x.npy", "--targets"]
    for more, words in (
        (["short.npy"], r"targets has shape \(50, 11\), expected that of logits, \(90, 11\)"),
        (["text.npy"], "targets has dtype <U1"),
        (["t.npy", "--axis", 1], "binary-cross-entropy takes no --axis"),
        (["t.npy", "--class-weight", "w.npy"], "takes no --class-weight"),
        (["t.npy", "--pos-weight", "w.npy"], r"pos_weight of shape \(7,\) does not broadcast"),
        (["t.npy", "--label-smoothing", 2], "label_smoothing must be at most 1"),
        (["t.npy", "-o", "p.npy"], "the loss is printed"),
    ):
        run(*line, *more, status=2)
        assert re.search(rf"fastsoftmax run: .*{words}", capsys.readouterr().err)
    run(*line, "t.npy", "--grad", "g.npy", status=3)
    words = r"targets\[70, 3\] is 1\.5, expected a number from 0 to 1; g\.npy not written"
    assert re.search(words, capsys.readouterr().err)
    assert "g.npy" not in names()


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_statistics_of_labels(axis, order, capsys):
    """An array with a field for each number."""
    x = np.asarray(logits((9, 10, 11)), order=order)
    labels = functions.labels_for(x.shape, axis, None)
    np.save("x.npy", x)
    np.save("y.npy", labels)
    flags = ("--targets", "y.npy", "--axis", axis, "--temperature", 0.7, "--ignore-index", 2)
    run("label-statistics", "x.npy", *flags, "-o", "s.npy")
    found = np.load("s.npy")
    expected = fs.label_statistics(x, labels, axis, temperature=0.7, ignore_index=2)
    assert found.dtype.names == expected._fields
    for name, values in expected._asdict().items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    np.save("soft.npy", x)
    run("label-statistics", "x.npy", "--targets", "soft.npy", "--axis", axis, "-o", "p.npy", status=2)
    assert "(class indices)" in capsys.readouterr().err
    run("label-statistics", "x.npy", *flags, "-o", "s.zarr", status=2)
    assert re.search(r"s\.zarr(: the statistics| needs)|need zarr", capsys.readouterr().err)


def test_statistics_of_products():
    x, weight, bias = logits((90, 7)), logits((11, 7)), logits((11,))
    labels = np.arange(90) % 11
    for name, array in {"x": x, "w": weight, "b": bias, "y": labels}.items():
        np.save(f"{name}.npy", array)
    flags = ("--weight", "w.npy", "--bias", "b.npy", "--targets", "y.npy", "--ignore-index", 3, "--softcap", 5)
    run("linear-softmax-statistics", "x.npy", *flags, "-o", "s.npy")
    found = np.load("s.npy")
    expected = fs.linear_softmax_statistics(x, weight, labels, bias, ignore_index=3, softcap=5)
    for name, values in expected._asdict().items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("axis", "shape"), [(-1, (90, 11)), (0, (11, 90)), (1, (9, 11, 20))])
@pytest.mark.parametrize("size", [None, 3])
def test_draws_are_those_of_the_array_in_memory(axis, shape, size, order):
    x = np.asarray(logits(shape), order=order)
    np.save("x.npy", x)
    more = () if size is None else ("--size", size)
    run("categorical", "x.npy", "--axis", axis, "--seed", 5, "--top-k", 6, *more, "-o", "c.npy")
    expected = fs.categorical(x, axis, rng=5, top_k=6, size=size)
    found = np.load("c.npy")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_the_temperature_of_a_file(axis, order, capsys):
    """The numbers of the array in memory: the sums over rows are exact, wherever the file is cut."""
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(0, 5, (700, 11) if axis else (11, 700)), np.float32, order=order)
    labels = np.where(rng.random(700) < 0.4, x.argmax(axis), rng.integers(0, 11, 700))
    weights = rng.random(700)
    for name, array in {"x": x, "y": labels, "w": weights}.items():
        np.save(f"{name}.npy", array)
    command = ("fit-temperature", "x.npy", "--axis", axis, "--targets", "y.npy")
    run(*command, "--sample-weight", "w.npy", "--ignore-index", 3, "--json")
    expected = fs.fit_temperature(x, labels, axis, sample_weight=weights, ignore_index=3)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == expected._asdict()
    assert f"{files.in_words(x.nbytes * expected.iterations)} in" in captured.err
    run(*command)
    expected = fs.fit_temperature(x, labels, axis)
    assert capsys.readouterr().out.splitlines()[0] == f"temperature         {expected.temperature}"
    np.save("y.npy", x.argmax(axis))
    run(*command, status=3)
    assert "every label has the greatest logit of its row" in capsys.readouterr().err
    run(command[0], "-", *command[2:], status=2)
    assert "reads INPUT several times" in capsys.readouterr().err
    run(*command, "-o", "p.npy", status=2)
    assert "fit-temperature takes no --output: the result is printed" in capsys.readouterr().err


def test_the_temperature_of_useless_logits(capsys):
    """The limit of large temperatures is looked at in another pass."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 7))
    np.save("x.npy", x)
    np.save("y.npy", x.argmin(-1))
    run("fit-temperature", "x.npy", "--targets", "y.npy", status=3)
    assert "do not agree with the logits better than chance" in capsys.readouterr().err


def test_draws_without_replacement_and_without_a_seed(capsys):
    x = logits()
    np.save("x.npy", x)
    run("categorical", "x.npy", "--seed", 5, "--size", 4, "--no-replace", "-o", "c.npy")
    np.testing.assert_array_equal(np.load("c.npy"), fs.categorical(x, rng=5, size=4, replace=False))
    drawn = []
    for _ in range(2):
        run("categorical", "x.npy", "-o", "d.npy", "--force")
        drawn.append(np.load("d.npy"))
    assert (drawn[0] != drawn[1]).any()
    x[70] = np.nan
    np.save("x.npy", x)
    capsys.readouterr()
    run("categorical", "x.npy", "-o", "e.npy", status=3)
    error = capsys.readouterr().err
    place, origin = map(int, re.search(r"at \[(\d+)\].*; its place is counted from \[(\d+)\]", error).groups())
    assert place + origin == 70
    run("categorical", "x.npy", "--size", 12, "--no-replace", "-o", "e.npy", status=2)
    assert "e.npy" not in names()


@pytest.mark.parametrize(
    ("function", "targets"), [("cross-entropy", "y.npy"), ("cross-entropy", "t.npy"), ("squared-error", "t.npy")]
)
@pytest.mark.parametrize("rows", [0, 90])
def test_a_mean_over_nothing(function, targets, rows, capsys):
    """No rows, or rows without weight."""
    x = logits()[:rows]
    np.save("x.npy", x)
    np.save("y.npy", np.zeros(rows, int))
    np.save("t.npy", np.ones_like(x))
    np.save("s.npy", np.zeros(rows))
    run(function, "x.npy", "--targets", targets, "--sample-weight", "s.npy", "--grad", "g.npy")
    both = getattr(fs, function.replace("-", "_") + "_with_grad")
    loss, slope = both(x, np.load(targets), sample_weight=np.zeros(rows))
    np.testing.assert_array_equal(float(capsys.readouterr().out), loss)
    np.testing.assert_array_equal(np.load("g.npy"), slope)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_entropy_and_its_gradient(dtype, capsys):
    x = logits().astype(dtype)
    np.save("x.npy", x)
    entropy, slope = fs.softmax_entropy_with_grad(x, temperature=2.0)
    run("softmax-entropy", "x.npy", "-o", "h.npy", "--temperature", 2.0)
    np.testing.assert_array_equal(np.load("h.npy"), entropy)
    run("softmax-entropy", "x.npy", "-o", "h.npy", "--grad", "g.npy", "--temperature", 2.0, "--force")
    np.testing.assert_array_equal(np.load("h.npy"), entropy)
    np.testing.assert_array_equal(np.load("g.npy"), slope)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_second_derivatives():
    x = logits()
    np.save("x.npy", x)
    np.save("v.npy", x[::-1])
    np.save("y.npy", np.arange(90) % 11)
    y = np.load("y.npy")
    for function, others, expected in (
        ("cross-entropy-hvp", ("--tangent", "v.npy"), fs.cross_entropy_hvp(x, y, x[::-1])),
        ("cross-entropy-hessian-diag", (), fs.cross_entropy_hessian_diag(x, y)),
        ("cross-entropy-hessian", (), fs.cross_entropy_hessian(x, y)),
    ):
        run(function, "x.npy", "--targets", "y.npy", "-o", "h.npy", "--force", *others)
        np.testing.assert_array_equal(np.load("h.npy"), expected)


@pytest.mark.parametrize(("axis", "order"), [(1, "C"), (1, "F"), (0, "C")])
def test_metrics(axis, order, capsys):
    """The bits of one update in memory, as a table and as JSON; rows that do not count are left out."""
    x = logits((90, 70))
    x[5] = np.nan
    labels = np.random.default_rng(8).integers(0, x.shape[axis], x.shape[1 - axis])
    labels[5 if axis == 1 else slice(0, 3)] = -100
    weights = np.random.default_rng(9).random(len(labels))
    if axis == 0:
        x[5] = 0
    np.save("x.npy", np.asarray(x, order=order))
    np.save("y.npy", labels)
    np.save("s.npy", weights)
    line = ("metrics", "x.npy", "--targets", "y.npy", "--axis", axis, "--ignore-index", -100)
    for more, given in (((), None), (("--sample-weight", "s.npy"), weights)):
        wanted = RunningMetrics().update(x, labels, axis, given, -100).result()
        run(*line, *more)
        table = dict(text.split() for text in capsys.readouterr().out.splitlines())
        assert table.pop("top_1_accuracy") == str(wanted.top_k_accuracy[1])
        assert table.pop("top_5_accuracy") == str(wanted.top_k_accuracy[5])
        names_of = [name for name in wanted._fields if name not in ("top_k_accuracy", "bins")]
        assert table == {name: str(getattr(wanted, name)) for name in names_of}
        run(*line, *more, "--json")
        found = json.loads(capsys.readouterr().out)
        assert {name: found[name] for name in names_of} == {name: getattr(wanted, name) for name in names_of}
        assert found["top_k_accuracy"] == {str(k): value for k, value in wanted.top_k_accuracy.items()}
        assert found["bins"]["edges"] == wanted.bins.edges.tolist()
        assert [one or np.nan for one in found["bins"]["confidence"]] == pytest.approx(
            wanted.bins.confidence.tolist(), rel=0, abs=0, nan_ok=True
        )
    assert names() == ["s.npy", "x.npy", "y.npy"]


def test_metrics_without_rows(capsys):
    np.save("x.npy", logits((0, 4)))
    np.save("y.npy", np.zeros(0, int))
    run("metrics", "x.npy", "--targets", "y.npy", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 0
    assert found["loss"] is None


def test_float16_is_rounded_after_the_reduction(capsys):
    x = np.tile(np.array([[16.0, 0.0]], np.float16), (60000, 1))
    np.save("x.npy", x)
    np.save("y.npy", np.zeros(60000, int))
    run("cross-entropy", "x.npy", "--targets", "y.npy", "--reduction", "sum")
    expected = fs.cross_entropy(x.astype(np.float32), np.zeros(60000, int), reduction="sum")
    assert capsys.readouterr().out.strip() == str(np.float16(expected))


@pytest.mark.parametrize("size", [1e-45, 1e-30, 3e38])
def test_weights_of_any_size(size, capsys):
    """A common factor cancels in a mean. The results have the bits of those in memory."""
    x, y = logits(), np.arange(90) % 11
    weights = (np.linspace(0.5, 1, 90) * size).astype(np.float32)
    weights[0] = size
    for name, array in (("x", x), ("y", y), ("s", weights)):
        np.save(f"{name}.npy", array)
    flags = ("--targets", "y.npy", "--sample-weight", "s.npy", "--force")
    run("cross-entropy", "x.npy", "--grad", "g.npy", *flags)
    loss, slope = fs.cross_entropy_with_grad(x, y, sample_weight=weights)
    assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=2e-7)
    np.testing.assert_array_equal(np.load("g.npy"), slope)
    run("cross-entropy-hessian-diag", "x.npy", "-o", "h.npy", *flags)
    np.testing.assert_array_equal(np.load("h.npy"), fs.cross_entropy_hessian_diag(x, y, sample_weight=weights))


EXTREME = {
    "inf": [np.inf, 1.0, 2.0],
    "-inf": [-np.inf, 1.0, 2.0],
    "both": [np.inf, -np.inf, 1.0],
    "nan": [np.nan, 1.0, 0.0],
    "overflow": [1.7e308, 1.6e308, 1.5e308],
    "beyond float32": [1e39, -1e39, 1e39],
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("weights", EXTREME)
@pytest.mark.parametrize("function", ["cross-entropy", "squared-error"])
def test_losses_and_weights_without_bounds(function, weights, dtype, capsys):
    """Sums of inf, of -inf and inf, and sums that overflow are those in memory, without a warning."""
    x = logits(dtype=dtype)
    targets = (
        np.arange(90) % 11 if function == "cross-entropy" else functions.distributions_for(x.shape, -1, x.dtype)
    )
    sample_weight = np.tile(EXTREME[weights], 30)
    for name, array in (("x", x), ("y", targets), ("s", sample_weight)):
        np.save(f"{name}.npy", array)
    for reduction in ("mean", "sum"):
        with np.errstate(all="ignore"):
            both = getattr(fs, function.replace("-", "_") + "_with_grad")
            loss, slope = both(x, targets, sample_weight=sample_weight, reduction=reduction)
        flags = ("--targets", "y.npy", "--sample-weight", "s.npy", "--reduction", reduction, "--grad", "g.npy")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run(function, "x.npy", *flags, "--force")
        assert not seen
        assert capsys.readouterr().out == f"{loss!s}\n"
        np.testing.assert_array_equal(np.load("g.npy"), slope)


def test_logits_without_bounds(capsys):
    """The loss of each row is finite or inf, and their sum overflows."""
    x = np.tile(np.array([[0.0, 1.7e308], [0.0, 1e300]]), (200, 1))
    np.save("x.npy", x)
    np.save("y.npy", np.zeros(400, int))
    for reduction in ("mean", "sum"):
        run("cross-entropy", "x.npy", "--targets", "y.npy", "--reduction", reduction)
        assert float(capsys.readouterr().out) == np.inf
    with np.errstate(all="ignore"):
        assert fs.cross_entropy(x, np.zeros(400, int)) == np.inf


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_and_order(axis, order, capsys):
    x = np.asarray(logits((9, 12, 10)), order=order)
    np.save("x.npy", x)
    labels = np.asarray(functions.labels_for(x.shape, axis, None), order="F")
    np.save("y.npy", labels)
    run("softmax", "x.npy", "-o", "p.npy", "--axis", axis)
    result = np.load("p.npy")
    np.testing.assert_array_equal(result, fs.softmax(x, axis))
    assert result.flags.f_contiguous == (order == "F")
    run("cross-entropy", "x.npy", "--targets", "y.npy", "--axis", axis, "--grad", "g.npy")
    assert float(capsys.readouterr().out) == pytest.approx(float(fs.cross_entropy(x, labels, axis)), rel=2e-7)
    np.testing.assert_array_equal(np.load("g.npy"), fs.cross_entropy_grad(x, labels, axis))
    run("logsumexp", "x.npy", "-o", "lse.npy", "--axis", axis)
    np.testing.assert_array_equal(np.load("lse.npy"), fs.logsumexp(x, axis))


@pytest.mark.parametrize("dtype", usually([("f2",), (">f4",), ("i2",), ("?",)], (0, 1)))
def test_dtypes(dtype):
    x = logits().astype(dtype)
    np.save("x.npy", x)
    run("softmax", "x.npy", "-o", "p.npy")
    result = np.load("p.npy")
    assert result.dtype == fs.softmax(x).dtype
    np.testing.assert_array_equal(result, fs.softmax(x))


@pytest.mark.parametrize("shape", [(11,), (0, 11), (90, 0), (3, 0, 4)])
def test_shapes_at_the_edge(shape):
    x = logits(shape)
    np.save("x.npy", x)
    for function in ("softmax", "logsumexp"):
        run(function, "x.npy", "-o", "y.npy", "--force")
        expected = np.asarray(getattr(fs, function)(x))
        assert np.load("y.npy").shape == expected.shape
        np.testing.assert_array_equal(np.load("y.npy"), expected)


def test_masked_entries():
    x = logits()
    np.save("x.npy", x)
    np.save("m.npy", x > 0)
    run("log-softmax", "x.npy", "-o", "y.npy", "--where", "m.npy", "--threads", 1)
    np.testing.assert_array_equal(np.load("y.npy"), fs.log_softmax(x, where=x > 0))


def test_a_file_over_itself():
    x = logits()
    np.save("x.npy", x)
    run("softmax", "x.npy", "-o", "x.npy", "--force")
    np.testing.assert_array_equal(np.load("x.npy"), fs.softmax(x))


def test_blocks_cover_everything_once():
    for shape in ((7, 5, 3), (1, 100), (5,), (2, 3, 4, 5)):
        for keep in range(len(shape)):
            for limit in (1, 40, 100, 10**6):
                for fortran in (False, True):
                    extent = stream.boxes(shape, 4, keep, limit, fortran)
                    seen = np.zeros(shape, int)
                    for box in stream.cover(shape, extent, fortran):
                        seen[box] += 1
                    assert (seen == 1).all()
                    assert extent[keep] == shape[keep]
                    least = shape[keep] * 4
                    starts, length = files.stretches(shape, box)
                    flat = np.concatenate([np.arange(n, n + length) for n in starts])
                    np.testing.assert_array_equal(flat, np.arange(seen.size).reshape(shape)[box].ravel())
                    assert np.prod(extent) * 4 <= max(limit, least)


# --- Zarr -----------------------------------------------------------------------------------------------------


def test_zarr_in_and_out():
    zarr = pytest.importorskip("zarr")
    x = logits((90, 11))
    source = zarr.open_array("x.zarr", mode="w", shape=x.shape, chunks=(7, 4), dtype=x.dtype)
    source[...] = x
    run("softmax", "x.zarr", "-o", "p.zarr")
    result = zarr.open_array("p.zarr", mode="r")
    np.testing.assert_array_equal(result[...], fs.softmax(x))
    assert result.chunks[0] % 7 == 0  # no chunk is written twice
    run("log-softmax", "p.zarr", "-o", "l.npy")
    np.testing.assert_array_equal(np.load("l.npy"), fs.log_softmax(fs.softmax(x)))
    run("softmax", "x.zarr", "-o", "p.zarr", status=2)
    run("log-softmax", "x.zarr", "-o", "p.zarr", "--force")
    np.testing.assert_array_equal(zarr.open_array("p.zarr", mode="r")[...], fs.log_softmax(x))
    assert names() == ["l.npy", "p.zarr", "x.zarr"]


def test_zarr_is_an_extra(monkeypatch, capsys):
    np.save("x.npy", logits())
    monkeypatch.setitem(sys.modules, "zarr", None)
    run("softmax", "x.npy", "-o", "p.zarr", status=2)
    assert capsys.readouterr().err == ("fastsoftmax run: Zarr arrays need zarr: pip install 'fastsoftmax[zarr]'\n")
    assert names() == ["x.npy"]


# --- what is refused ------------------------------------------------------------------------------------------


def spoiled():
    """{name: content} of files that hold no valid array."""
    x = logits()
    np.save("x.npy", x)
    np.save("y.npy", np.arange(90) % 11)
    np.save("wrong.npy", np.arange(90))
    np.save("short.npy", np.arange(89) % 11)
    np.save("complex.npy", x.astype(complex))
    np.save("objects.npy", np.array([1, None], object))
    np.savez("several.npz", x=x, y=x)
    np.savez("archive.npz", x)
    os.rename("archive.npz", "archive.npy")
    Path("text.npz").write_text("1 2 3")
    Path("truncated.npy").write_bytes(Path("x.npy").read_bytes()[:-1])
    Path("header.npy").write_bytes(Path("x.npy").read_bytes()[:30])
    Path("pickle.npy").write_bytes(pickle.dumps(x))
    Path("text.npy").write_text("1 2 3")
    Path("empty.npy").write_text("")
    Path("directory").mkdir()


REFUSED = [
    ("softmax none.npy -o p.npy", r"none\.npy does not exist"),
    ("softmax truncated.npy -o p.npy", r"truncated\.npy is truncated: 4\.1 kB are less than its header says"),
    ("softmax header.npy -o p.npy", r"header\.npy is no valid \.npy file: its header is cut off"),
    ("softmax objects.npy -o p.npy", r"objects\.npy holds pickled Python objects, which are not read"),
    ("softmax pickle.npy -o p.npy", r"pickle\.npy is a pickle"),
    (
        "softmax several.npz -o p.npy",
        r"several\.npz holds several arrays; choose one, such as several\.npz/x: x, y",
    ),
    ("softmax several.npz/z -o p.npy", r"several\.npz has no array z, but x, y"),
    ("softmax none.npz/z -o p.npy", r"none\.npz/z does not exist"),
    ("softmax archive.npy -o p.npy", r"archive\.npy is an archive of arrays; its name has to end in \.npz"),
    ("softmax text.npz -o p.npy", r"text\.npz is no valid archive: File is not a zip file"),
    ("softmax x.npy -o p.csv", r"p\.csv: a result is a \.npy file or a \.zarr array, and its name has to end so"),
    ("softmax x.npy -o p", r"p: a result is a \.npy file or a \.zarr array"),
    ("softmax x.npy -o ./-", r"/-: a result is a \.npy file or a \.zarr array"),
    ("cross-entropy x.npy --targets -", r"--targets needs the name of a file; only INPUT is read from standard"),
    ("cross-entropy x.npy --targets y.npy --grad -", r"the loss is printed on standard output; --grad needs the"),
    (
        "cross-entropy x.npy --targets y.npy --reduction none -o - --grad -",
        r"--output and --grad are the same file",
    ),
    ("softmax x.npy -o - --scheduler tcp://127.0.0.1:9", r"with --scheduler, results go to files"),
    ("softmax text.npy -o p.npy", r"text\.npy is no \.npy file"),
    ("softmax empty.npy -o p.npy", r"empty\.npy is no \.npy file"),
    ("softmax directory -o p.npy", r"directory is no Zarr array"),
    ("softmax complex.npy -o p.npy", r"softmax: x has dtype complex128, expected float16"),
    ("softmax x.npy -o p.npy --axis 2", r"axis 2 is out of bounds"),
    ("softmax x.npy -o p.npy --temperature 0", r"temperature must be finite and > 0"),
    ("softmax x.npy", r"softmax needs --output FILE"),
    ("softmax x.npy -o x.npy", r"x\.npy exists; --force overwrites it"),
    ("softmax x.npy -o directory --force", r"directory is a directory and no Zarr array"),
    ("softmax x.npy -o x.npy/p.npy", r"x\.npy/p\.npy cannot be used: Not a directory"),
    ("softmax x.npy/y.npy -o p.npy", r"x\.npy/y\.npy cannot be used: Not a directory"),
    (f"softmax x.npy -o {'p' * 300}", r"p{300} cannot be used: File name too long"),
    (f"softmax {'x' * 300} -o p.npy", r"x{300} cannot be used: File name too long"),
    (f"softmax x.npy -o {'p/' * 3000}p.npy", r"cannot be used: File name too long"),
    ("softmax x.npy -o p.npy --axis 99999999999999999999", r"axis"),
    ("softmax x\0.npy -o p.npy", r"x\\x00\.npy cannot be used: embedded null"),
    ("softmax x.npy -o p\0.npy", r"p\\x00\.npy cannot be used: embedded null"),
    ("softmax x.npy -o no/p.npy", r"no is no directory that can be written to"),
    ("softmax x.npy -o p.npy --threads 0", r"--threads must be at least 1, got 0"),
    ("softmax x.npy -o p.npy --targets y.npy", r"softmax takes no --targets"),
    ("softmax x.npy -o p.npy --from-probs", r"softmax takes no --from-probs"),
    ("softmax x.npy -o p.npy --where y.npy", r"where has dtype int64, expected bool"),
    ("softmax-jvp x.npy -o p.npy", r"softmax-jvp needs --tangent FILE"),
    ("softmax-jvp x.npy -o p.npy --tangent y.npy", r"tangent has shape \(90,\), expected that of x, \(90, 11\)"),
    ("cross-entropy x.npy", r"cross-entropy needs --targets FILE"),
    ("cross-entropy x.npy --targets short.npy", r"targets has shape \(89,\), expected \(90,\) \(class indices\)"),
    ("cross-entropy x.npy --targets wrong.npy", r"targets\[11\] is 11, expected a label from 0 to 10"),
    ("cross-entropy x.npy --targets y.npy --label-smoothing 2", r"label_smoothing must be at most 1"),
    ("cross-entropy x.npy --targets y.npy --softcap -1", r"softcap must be finite and > 0"),
    (
        "cross-entropy x.npy --targets y.npy --class-weight y.npy",
        r"--class-weight has shape \(90,\), expected \(11,\)",
    ),
    ("cross-entropy x.npy --targets y.npy --sample-weight short.npy", r"--sample-weight has shape \(89,\)"),
    ("cross-entropy x.npy --targets y.npy -o p.npy", r"the loss is printed"),
    ("cross-entropy x.npy --targets y.npy --reduction none", r"--reduction none needs --output FILE"),
    ("cross-entropy x.npy --targets y.npy --reduction none -o p.npy --grad ./p.npy", r"are the same file"),
    (
        "cross-entropy x.npy --targets y.npy --reduction none -o p.npy --grad directory/../p.npy",
        r"--output and --grad are the same file",
    ),
    ("metrics x.npy", r"metrics needs --targets FILE"),
    ("metrics x.npy --targets wrong.npy", r"metrics: targets\[11\] is 11, expected a label from 0 to 10"),
    (
        "metrics x.npy --targets x.npy",
        r"metrics: targets has shape \(90, 11\), expected \(90,\) \(class indices\)",
    ),
    ("metrics x.npy --targets y.npy -o p.npy", r"metrics takes no --output"),
    (
        "fit-temperature x.npy --targets y.npy --scheduler tcp://127.0.0.1:9",
        r"fit-temperature takes no --scheduler: each of its passes needs the sums of the last one",
    ),
    ("metrics x.npy --targets y.npy --sample-weight short.npy", r"--sample-weight has shape \(89,\)"),
    ("softmax x.npy -o p.npy --json", r"softmax takes no --json"),
    ("softmax x.npy -o p.npy --scheduler tcp://127.0.0.1:9", r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_cannot_begin_is_refused(line, words, capsys, monkeypatch):
    spoiled()
    before = names()
    if "--scheduler" in line:
        distributed = pytest.importorskip("distributed")
        client = distributed.Client
        monkeypatch.setattr(distributed, "Client", lambda address, timeout: client(address, timeout=0.5))
    run(*line.split(), status=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(rf"fastsoftmax run: .*{words}", captured.err), captured.err
    assert captured.err.count("\n") == 1
    assert names() == before


HEADERS = {
    "open bracket": b"{'descr': '<f4', 'fortran_order': False, 'shape': (90, 11",
    "open string": b"{'descr': '<f4",
    "nothing": b"",
    "no Python": b"\xff\xfe\x00 ~ $ `",
    "indentation": b"  {\n 'descr'",
    "list": b"[]",
    "unhashable key": b"{[]: 1}",
    "keys of two types": b"{1: 2, 'descr': '<f4', 'shape': (1,)}",
    "no such dtype": b"{'descr': '<q9', 'fortran_order': False, 'shape': (1,)}",
    "dtype of nonsense": b"{'descr': [('a', '<f4', 1, 2, 3)], 'fortran_order': False, 'shape': (1,)}",
    "dtype of nothing": b"{'descr': (), 'fortran_order': False, 'shape': (1,)}",
    "fields": b"{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (90,)}",
    "text": b"{'descr': '<U9', 'fortran_order': False, 'shape': (9, 2)}",
    "huge items": b"{'descr': '|V2147483647', 'fortran_order': False, 'shape': (0, 2)}",
    "no bytes": b"{'descr': '|V0', 'fortran_order': False, 'shape': (9, 2)}",
    "negative shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-90, 11)}",
    "twice negative shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-90, -11)}",
    "huge shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 11)}",
    "shape that wraps around": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
    "shape beyond all integers": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 50 + b", 2)}",
    "huge and empty": b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904)}",
    "too many dimensions": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 70 + b")}",
    "no tuple": b"{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
    "no integers": b"{'descr': '<f4', 'fortran_order': False, 'shape': (2.5, 3)}",
    "no bool": b"{'descr': '<f4', 'fortran_order': 7, 'shape': (2, 3)}",
    "deep": b"(" * 5000,
    "deep sign": b"-" * 5000 + b"1",
    "very long": b"{'descr': '<f4', 'fortran_order': False, 'shape': (90, 11)}" + b" " * 20_000,
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("header", HEADERS)
def test_malformed_headers_are_refused(header, version, capfd):
    """There is no traceback, and no warning or advice of NumPy."""
    words = HEADERS[header]
    length = len(words).to_bytes(2 if version == 1 else 4, "little")
    Path("x.npy").write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + words + bytes(4000))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run("softmax", "x.npy", "-o", "p.npy", status=2)
    assert not seen
    said = capfd.readouterr().err
    assert re.fullmatch(r"fastsoftmax run: (.*x\.npy (is|cannot)|softmax: x has).*\n", said), said
    assert not re.search("allow_pickle|Warning|max_header_size", said)
    assert names() == ["x.npy"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version):
    x = logits()
    with Path("x.npy").open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(file, x, version=version)
    run("softmax", "x.npy", "-o", "p.npy")
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x))


def test_a_header_of_python_2_is_read_without_a_warning(capfd):
    x = logits()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (90L, 11L)}\n"
    Path("x.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + x.tobytes())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run("softmax", "x.npy", "-o", "p.npy")
    assert not seen
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x))
    assert capfd.readouterr().err.count("\n") == 1


# --- what is no regular file ----------------------------------------------------------------------------------


def make_special(kind, name):
    """A path to something that is no regular file, in this directory and not in /dev."""
    if kind == "FIFO":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as endpoint:
            endpoint.bind(name)
    elif kind == "directory":
        Path(name).mkdir()
        Path(name, "mine").write_text("mine")
    else:
        try:
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            Path(name).open("rb").close()
        except OSError:
            pytest.skip("devices may be made by root alone")


SPECIAL = ["FIFO", "socket", "device", "directory"]
posix = pytest.mark.skipif(os.name == "nt", reason="files of POSIX systems")


@posix
@pytest.mark.parametrize("link", [False, True], ids=["itself", "by a link"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_replaced(kind, force, link, capsys):
    np.save("x.npy", logits())
    make_special(kind, "special")
    if link:
        os.symlink("special", "p.npy")
    name = "p.npy" if link else "special"
    before = os.lstat("special")
    run("softmax", "x.npy", "-o", name, *["--force"] * force, status=2)
    assert re.fullmatch(rf"fastsoftmax run: {name} is a {kind}\b.*\n", capsys.readouterr().err)
    after = os.lstat("special")
    assert (before.st_ino, before.st_mode, before.st_rdev) == (after.st_ino, after.st_mode, after.st_rdev)
    assert names() == sorted({"x.npy", "special", name})
    assert kind != "directory" or os.listdir("special") == ["mine"]


@posix
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_came_into_being_is_replaced_only_if_it_is_a_regular_file(kind, monkeypatch, capsys):
    np.save("x.npy", logits())
    compute = stream.Local.compute

    def meanwhile(self, box, block):
        if not os.path.lexists("p.npy"):
            make_special(kind, "p.npy")
        return compute(self, box, block)

    monkeypatch.setattr(stream.Local, "compute", meanwhile)
    run("softmax", "x.npy", "-o", "p.npy", "--force", status=3)
    assert re.search(rf"p\.npy is a {kind}.*; p\.npy not written\n", capsys.readouterr().err)
    assert not Path("p.npy").is_file()
    assert names() == ["p.npy", "x.npy"]


@posix
@pytest.mark.parametrize("kind", SPECIAL[:-1])
@pytest.mark.parametrize("option", ["input", "--targets", "--sample-weight", "--class-weight"])
def test_only_regular_files_are_read(option, kind, capsys):
    """In particular, the command does not wait for the other end of a FIFO."""
    np.save("x.npy", logits())
    np.save("y.npy", np.zeros(90, int))
    make_special(kind, "special")
    flags = {"input": "x.npy", "--targets": "y.npy", option: "special"}
    run("cross-entropy", flags.pop("input"), *[part for pair in flags.items() for part in pair], status=2)
    words = rf"fastsoftmax run: .*special is a {kind}; arrays are read from regular files\n"
    assert re.fullmatch(words, capsys.readouterr().err)


@posix
def test_a_zarr_array_with_a_fifo_in_it_is_refused(capsys):
    Path("x.zarr").mkdir()
    make_special("FIFO", "x.zarr/zarr.json")
    run("softmax", "x.zarr", "-o", "p.npy", status=2)
    assert "zarr.json is no regular file" in capsys.readouterr().err


def test_a_zarr_group_is_never_replaced(capsys):
    zarr = pytest.importorskip("zarr")
    np.save("x.npy", logits())
    zarr.open_group("p.zarr", mode="w").create_array("mine", shape=(3,), dtype="f4")
    run("softmax", "x.npy", "-o", "p.zarr", "--force", status=2)
    assert "p.zarr is a directory and no Zarr array" in capsys.readouterr().err
    assert "mine" in names("p.zarr")


@posix
def test_a_link_to_a_regular_file_is_followed():
    x = logits()
    np.save("x.npy", x)
    Path("there").mkdir()
    Path("there/p.npy").write_text("old")
    os.symlink("there/p.npy", "p.npy")
    run("softmax", "x.npy", "-o", "p.npy", status=2)
    assert Path("there/p.npy").read_text() == "old"
    run("softmax", "x.npy", "-o", "p.npy", "--force")
    assert os.readlink("p.npy") == "there/p.npy"
    np.testing.assert_array_equal(np.load("there/p.npy"), fs.softmax(x))
    assert (names(), names("there")) == (["p.npy", "there", "x.npy"], ["p.npy"])


@posix
@pytest.mark.parametrize(
    ("target", "words"),
    [("none.npy", "is a symbolic link that leads nowhere"), ("p.npy", "cannot be used: Too many")],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_link_that_leads_nowhere_is_refused(target, words, force, capsys):
    np.save("x.npy", logits())
    os.symlink(target, "p.npy")
    run("softmax", "x.npy", "-o", "p.npy", *["--force"] * force, status=2)
    assert re.match(rf"fastsoftmax run: p\.npy {words}", capsys.readouterr().err)
    assert names() == ["p.npy", "x.npy"]


# --- names ----------------------------------------------------------------------------------------------------


@posix
def test_results_are_the_same_file_by_whatever_name(capsys):
    np.save("x.npy", logits())
    np.save("y.npy", np.zeros(90, int))
    Path("sub").mkdir()
    Path("g.npy").write_text("mine")
    os.symlink("g.npy", "link.npy")
    os.symlink("sub", "way")
    flags = ("--targets", "y.npy", "--reduction", "none", "--force")
    for name in ("sub/../g.npy", "./g.npy", "link.npy", os.path.abspath("g.npy"), "way/../sub/.././g.npy"):
        run("cross-entropy", "x.npy", *flags, "-o", "g.npy", "--grad", name, status=2)
        assert capsys.readouterr().err == "fastsoftmax run: --output and --grad are the same file\n"
    assert Path("g.npy").read_text() == "mine"


def test_a_file_over_itself_by_another_name():
    x = logits()
    np.save("x.npy", x)
    Path("sub").mkdir()
    run("softmax", "x.npy", "-o", "sub/../x.npy", status=2)
    run("softmax", "sub/../x.npy", "-o", "x.npy", "--force")
    np.testing.assert_array_equal(np.load("x.npy"), fs.softmax(x))
    assert names() == ["sub", "x.npy"]


def test_no_result_lies_inside_another(capsys):
    pytest.importorskip("zarr")
    np.save("x.npy", logits())
    np.save("y.npy", np.zeros(90, int))
    flags = ("--targets", "y.npy", "--reduction", "none", "--force")
    run("cross-entropy", "x.npy", *flags, "-o", "p.zarr")
    run("cross-entropy", "x.npy", *flags, "-o", "p.zarr", "--grad", "p.zarr/g.npy", status=2)
    assert "--output and --grad lie one inside the other" in capsys.readouterr().err


@pytest.mark.parametrize("length", [150, 201, 255])
def test_long_names_leave_room_for_the_temporary_one(length):
    x = logits()
    np.save("x.npy", x)
    name = "p" * (length - 4) + ".npy"
    run("softmax", "x.npy", "-o", name)
    np.testing.assert_array_equal(np.load(name), fs.softmax(x))
    assert names() == [name, "x.npy"]


@pytest.mark.parametrize(
    "name", ["p[1].npy", "**.npy", "p?*.npy", "-.npy", " .npy", "p\n.npy", "\x1b[2J.npy", "\udcff.npy"]
)
def test_any_name_is_a_name(name, capsys):
    np.save("x.npy", logits())
    run("softmax", "x.npy", "-o", f"./{name}")
    assert capsys.readouterr().err.removesuffix("\n").isprintable()
    assert names() == sorted([name, "x.npy"])
    leftover = f".{name}.{10**30}.part"
    Path(leftover).write_text("")
    run("softmax", "x.npy", "-o", f"./{name}", "--force")
    assert "is left from a run that was killed" in capsys.readouterr().err


def test_what_another_run_writes_is_left_alone(capsys):
    """Another run, for instance in another container, may have the same process number. Its file is kept."""
    np.save("x.npy", logits())
    part = f".p.npy.{os.getpid()}.part"
    Path(part).write_text("theirs")
    run("softmax", "x.npy", "-o", "p.npy", status=2)
    assert "p.npy cannot be written: File exists" in capsys.readouterr().err
    assert Path(part).read_text() == "theirs"
    assert names() == [part, "x.npy"]


@posix
def test_a_working_directory_that_was_removed(tmp_path, capsys):
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir(tmp_path / "gone")
    run("softmax", "x.npy", "-o", "p.npy", status=2)
    assert capsys.readouterr().err.startswith("fastsoftmax run: ")


@posix
@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_refused(capsys):
    np.save("x.npy", logits())
    Path("closed").mkdir(mode=0o500)
    run("softmax", "x.npy", "-o", "closed/p.npy", status=2)
    os.chmod("x.npy", 0)
    run("softmax", "x.npy", "-o", "p.npy", status=2)
    assert "x.npy cannot be read: Permission denied" in capsys.readouterr().err


# --- standard output and error --------------------------------------------------------------------------------

LOSS = ("cross-entropy", "x.npy", "--targets", "y.npy", "--grad", "g.npy")
PLAIN = ("softmax", "x.npy", "-o", "g.npy")
WRONG = ("softmax", "none.npy", "-o", "g.npy")
STREAMS = [
    (LOSS, "", 0),
    (LOSS, ">/dev/full", 3),
    (LOSS, ">&-", 2),
    (LOSS, "2>/dev/full", 0),
    (LOSS, "2>&-", 0),
    (LOSS, ">/dev/null 2>&- <&-", 0),
    (LOSS, ">/dev/full 2>/dev/full", 3),
    (LOSS, ">&- 2>&- <&-", 2),
    (LOSS, "| true", 3),
    (PLAIN, ">/dev/full 2>/dev/full", 0),
    (PLAIN, ">&- 2>&- <&-", 0),
    (WRONG, "2>/dev/full", 2),
    (WRONG, "2>&-", 2),
    (("hardmax",), "2>/dev/full", 2),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(("words", "streams", "status"), STREAMS, ids=[f"{w[0]} {s}" for w, s, _ in STREAMS])
def test_the_status_tells_the_truth_whatever_happens_to_the_streams(words, streams, status, unbuffered):
    """The status is 0 if and only if the result has its name and is complete. No temporary file stays."""
    x = logits()
    labels = np.arange(90) % 11
    np.save("x.npy", x)
    np.save("y.npy", labels)
    command = [sys.executable, "-m", "fastsoftmax", "run", *words]
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent), PYTHONUNBUFFERED=unbuffered)
    environment.pop("COVERAGE_PROCESS_START", None)
    if streams == "| true":  # the reader has closed its end
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=120)
        os.close(writer)
    else:
        shell = ["bash", "-c", f'"$@" {streams}', "bash", *command]
        done = subprocess.run(shell, env=environment, capture_output=True, timeout=120)
    errors = done.stderr.decode()
    assert done.returncode == status, errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert names() == (["g.npy", "x.npy", "y.npy"] if status == 0 else ["x.npy", "y.npy"])
    if status == 0:
        expected = fs.softmax(x) if words is PLAIN else fs.cross_entropy_grad(x, labels)
        np.testing.assert_array_equal(np.load("g.npy"), expected)
    if words is LOSS and status == 0 and ">/dev/null" not in streams:
        assert done.stdout.decode() == str(fs.cross_entropy(x, labels)) + "\n"  # and none of the messages
    if "2>" not in streams and status == 3:
        assert words is not LOSS or re.fullmatch(
            r"fastsoftmax run: the loss cannot be .*; g\.npy not written\n", errors
        )
    if words is LOSS and streams == ">&-":
        assert errors == "fastsoftmax run: the loss is printed, but standard output is closed\n"


SIGNALLED = """
import os, signal, sys
import numpy as np
from fastsoftmax.backends import files, stream
from fastsoftmax.tools.cli import main

def at_once(self):
    commit(self)
    os.kill(os.getpid(), signal.{name})
commit, files._Replacement.commit = files._Replacement.commit, at_once
say = stream._say
def say_and_end(message):
    os.kill(os.getpid(), signal.{name})
    say(message)
stream._say = say_and_end
sys.exit(main(["run", "cross-entropy", "x.npy", "--targets", "y.npy", "--reduction", "none",
               "-o", "p.npy", "--grad", "g.npy"]))
"""


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_too_late_changes_nothing(name):
    """A signal while the results are renamed, or after it: all have their names, so that the status is 0."""
    np.save("x.npy", logits())
    np.save("y.npy", np.zeros(90, int))
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent))
    code = SIGNALLED.format(name=name)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert names() == ["g.npy", "p.npy", "x.npy", "y.npy"]


@posix
def test_an_ignored_signal_stays_ignored():
    """A signal that the parent process ignored, as under nohup, stays ignored."""
    np.save("x.npy", logits((2000, 11)))
    process = begun(before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert names() == ["p.npy", "x.npy"]


def test_unknown_functions_are_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["run", "hardmax", "x.npy"])
    assert exit_.value.code == 2
    assert "softmax-jvp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run sofmax x.npy", "there is no sofmax; did you mean softmax or"),
        ("run crossentropy x.npy", "there is no crossentropy; did you mean cross-entropy"),
        ("run cross_entropy_grad x.npy", "the gradient comes from cross-entropy with --grad FILE"),
        ("run softmax_entropy_with_grad x.npy", "the gradient comes from softmax-entropy with --grad FILE"),
        (
            "run softmax x.npy -o p.npy --temprature 3",
            "there is no option --temprature; did you mean --temperature?",
        ),
        ("run softmax x.npy -o p.npy --quux=3", "there is no option --quux\n"),
        ("run softmax x.npy y.npy -o p.npy", "unexpected argument: y.npy"),
        ("softmax x.npy", "there is no command softmax; did you mean run softmax?"),
        ("log_softmax x.npy", "there is no command log_softmax; did you mean run log-softmax?"),
        ("warmap", "there is no command warmap; did you mean warmup?"),
        ("warmup --jbos 3", "there is no option --jbos; did you mean --jobs?"),
    ],
)
def test_a_wrong_name_gets_a_suggestion(words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words.split())
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_names_with_underscores_are_taken(capsys):
    """Those of the functions, and those of their parameters."""
    x = logits()
    np.save("x_x.npy", x)
    np.save("y_y.npy", np.arange(90) % 11)
    run("log_softmax", "x_x.npy", "-o", "p_p.npy")
    np.testing.assert_array_equal(np.load("p_p.npy"), fs.log_softmax(x))
    np.save("--x_x.npy", x)
    run("softmax", "-o", "q_q.npy", "--", "--x_x.npy")
    np.testing.assert_array_equal(np.load("q_q.npy"), fs.softmax(x))
    run("cross_entropy", "x_x.npy", "--targets=y_y.npy", "--ignore_index=3", "--label_smoothing", 0.5)
    expected = fs.cross_entropy(x, np.arange(90) % 11, ignore_index=3, label_smoothing=0.5)
    assert float(capsys.readouterr().out) == pytest.approx(float(expected), rel=2e-7)


def test_focal_loss(tmp_path, capsys):
    """The bits of the call in memory; class indices are targets here, too."""
    rng = np.random.default_rng(0)
    x, labels, weights = rng.normal(0, 3, (7000, 12)), rng.integers(-1, 12, 7000), rng.random(7000)
    for name, array in (("x", x), ("y", labels), ("w", weights)):
        np.save(tmp_path / f"{name}.npy", array)
    options = [f"--targets={tmp_path / 'y.npy'}", f"--sample-weight={tmp_path / 'w.npy'}", "--ignore-index=-1"]
    command = ["run", "focal-loss", str(tmp_path / "x.npy"), *options, "--gamma=1.5"]
    assert main([*command, f"--grad={tmp_path / 'g.npy'}"]) == 0
    given = {"gamma": 1.5, "sample_weight": weights, "ignore_index": -1}
    loss, gradient = fs.focal_loss_with_grad(x, labels, **given)
    assert float(capsys.readouterr().out) == loss
    np.testing.assert_array_equal(np.load(tmp_path / "g.npy"), gradient)
    command[1] = "focal-loss-hessian-diag"
    assert main([*command, f"--output={tmp_path / 'h.npy'}"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "h.npy"), fs.focal_loss_hessian_diag(x, labels, **given))
    assert main([*command[:-1], "--gamma=-1", f"--output={tmp_path / 'i.npy'}"]) == 2
    assert "gamma must be finite and >= 0" in capsys.readouterr().err


def test_commands_are_the_functions_and_their_options(capsys):
    """Gradients come with their function, and segments are no matrix; everything else is there."""
    assert tuple(stream.COMMANDS) == cli.COMMANDS
    left_out = {"threads", "linear_cross_entropy_hvp"}  # the last: arrays of other shapes
    expected = {name for name in fs.__all__ if not name.startswith("segment_") and not name.endswith("_grad")}
    assert {name.replace("-", "_") for name in stream.COMMANDS} == expected - left_out | {"metrics"}
    assert [name for name, command in stream.COMMANDS.items() if "grad" in command.options] == [
        "softmax-entropy",
        "cross-entropy",
        "focal-loss",
        "binary-cross-entropy",
        "binary-focal-loss",
        "squared-error",
        "kl-divergence",
        "js-divergence",
        "linear-cross-entropy",
    ]
    assert stream.DEFAULTS["reduction"] == "mean"
    assert stream.DEFAULTS["temperature"] == 1.0
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert all(f"{stream._flag(name)} " in text for name in stream.DEFAULTS)


# --- what breaks off ------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from fastsoftmax.backends import files, stream
from fastsoftmax.tools.cli import main

stream.BLOCK_BYTES = 1 << 10
compute = stream.Local.compute
def slowly(*arguments):
    print("block", flush=True)
    time.sleep({pause})
    return compute(*arguments)
stream.Local.compute = slowly
{before}
sys.exit(main(["run", "softmax", "x.npy", "-o", "p.npy", "--force"]))
"""


def begun(pause=0.05, before=""):
    """Start a run in another process, and wait until it has done the first blocks."""
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent))
    environment.pop("COVERAGE_PROCESS_START", None)
    script = SCRIPT.format(pause=pause, before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "block\n"
    return process


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated")],
)
def test_an_interrupted_run_leaves_nothing(number, status, words, exists):
    np.save("x.npy", logits((2000, 11)))
    if exists:
        Path("p.npy").write_text("mine")
    before = names()
    process = begun()
    assert len(names()) == len(before) + 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors == f"fastsoftmax run: {words}; p.npy not written\n"
    assert names() == before
    if exists:
        assert Path("p.npy").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_run_leaves_no_result_and_the_next_one_says_what_it_left(capsys):
    np.save("x.npy", logits((2000, 11)))
    process = begun()
    process.kill()
    process.communicate()
    part = f".p.npy.{process.pid}.part"
    assert names() == [part, "x.npy"]
    run("softmax", "x.npy", "-o", "p.npy")
    words = capsys.readouterr().err
    assert re.match(
        rf"fastsoftmax run: .*{re.escape(part)} is left from a run that was killed; remove it\n", words
    )
    np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(np.load("x.npy")))


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limits of the size of files")
@pytest.mark.parametrize("reserve", [True, False], ids=["reserved", "written"])
def test_a_full_disk_leaves_nothing(reserve):
    """It is noticed when space is reserved or, where that is not possible, when a write fails."""
    np.save("x.npy", logits((2000, 11)))
    before = "files.NpyTarget._reserve = lambda self, size: None" if not reserve else ""
    script = LIMITED.format(limit=40_000) + SCRIPT.format(pause=0, before=before)
    environment = dict(os.environ, PYTHONPATH=str(child.PACKAGE.parent), FASTSOFTMAX_CACHE_DIR="")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    words = "p.npy needs 88.0 kB: File too large" if reserve else "File too large"
    errors = done.stderr.replace("fastsoftmax: compiling kernels, which the next process will find\n", "")
    assert errors == f"fastsoftmax run: {words}; p.npy not written\n"
    assert names() == ["x.npy"]


def test_a_failing_write_leaves_nothing(monkeypatch, capsys):
    np.save("x.npy", logits())
    np.save("y.npy", np.arange(90) % 11)

    def fails(self, box, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.NpyTarget, "write", fails)
    run("cross-entropy", "x.npy", "--targets", "y.npy", "--grad", "g.npy", status=3)
    captured = capsys.readouterr()
    assert captured.err == "fastsoftmax run: No space left on device; g.npy not written\n"
    assert captured.out == ""
    assert names() == ["x.npy", "y.npy"]


@pytest.mark.parametrize("size", [2000, 0])
@pytest.mark.parametrize("axis", [1, 0], ids=["read", "mapped"])
def test_a_file_that_shrinks_is_noticed(axis, size, monkeypatch, capsys):
    """Reading the mapping of a shrunk file would kill the process, which would leave its temporary file."""
    monkeypatch.setattr(files, "LEAST_STRETCH", 1 << 10)
    np.save("x.npy", logits((90, 400)))
    read = files.NpyFile.read

    def shrink(self, box, room):
        os.truncate("x.npy", size)
        return read(self, box, room)

    monkeypatch.setattr(files.NpyFile, "read", shrink)
    run("softmax", "x.npy", "-o", "p.npy", "--axis", axis, status=3)
    assert "x.npy became shorter while it was read; p.npy not written" in capsys.readouterr().err
    assert names() == ["x.npy"]


def test_labels_that_shrink_are_noticed(monkeypatch, capsys):
    """Labels are read through a mapping, before the logits."""
    np.save("x.npy", np.zeros((20_000, 2), np.float32))
    np.save("y.npy", np.zeros(20_000, int))
    divisor = stream.Local._divisor

    def shrink(self, targets):
        os.truncate("y.npy", 200)
        return divisor(self, targets)

    monkeypatch.setattr(stream.Local, "_divisor", shrink)
    run("cross-entropy", "x.npy", "--targets", "y.npy", status=3)
    assert "y.npy became shorter while it was read" in capsys.readouterr().err


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_all_results_get_their_names_or_none(exists, links, monkeypatch, capsys):
    """If the second result cannot be renamed, the first target is restored, with and without hard links."""
    np.save("x.npy", logits())
    np.save("y.npy", np.zeros(90, int))
    if exists:
        Path("p.npy").write_text("mine")
        Path("g.npy").write_text("mine too")
    before = names()
    replace = os.replace

    def fails(source, target):
        if os.fspath(target).endswith("g.npy") and os.fspath(source).endswith(".part"):
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "replace", fails)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    flags = ("--targets", "y.npy", "--reduction", "none", "-o", "p.npy", "--grad", "g.npy", "--force")
    run("cross-entropy", "x.npy", *flags, status=3)
    words = "fastsoftmax run: Operation not permitted; p.npy, g.npy not written\n"
    assert capsys.readouterr().err == words
    assert names() == before
    if exists:
        assert (Path("p.npy").read_text(), Path("g.npy").read_text()) == ("mine", "mine too")


def test_too_little_memory_is_said(monkeypatch, capsys):
    np.save("x.npy", logits())

    def fails(self, box, block):
        raise MemoryError

    monkeypatch.setattr(stream.Local, "compute", fails)
    run("softmax", "x.npy", "-o", "p.npy", status=3)
    assert capsys.readouterr().err == "fastsoftmax run: not enough memory; p.npy not written\n"
    assert names() == ["x.npy"]


def test_a_result_that_came_into_being_is_kept(monkeypatch, capsys):
    np.save("x.npy", logits())
    compute = stream.Local.compute

    def meanwhile(self, box, block):
        Path("p.npy").write_text("mine")
        return compute(self, box, block)

    monkeypatch.setattr(stream.Local, "compute", meanwhile)
    run("softmax", "x.npy", "-o", "p.npy", status=3)
    assert "p.npy came into being meanwhile" in capsys.readouterr().err
    assert Path("p.npy").read_text() == "mine"
    assert names() == ["p.npy", "x.npy"]


# --- progress and memory --------------------------------------------------------------------------------------


def test_the_summary_counts_what_the_user_waited(monkeypatch, capsys):
    """Also the check of the labels, which comes first, and the time until the disk has the result."""
    np.save("x.npy", logits())
    np.save("y.npy", np.zeros(90, int))
    sync, check = files.NpyTarget.sync, stream.Local._divisor

    def slow_sync(self):
        time.sleep(0.3)
        sync(self)

    def slow_check(self, targets):
        time.sleep(0.3)
        return check(self, targets)

    monkeypatch.setattr(files.NpyTarget, "sync", slow_sync)
    monkeypatch.setattr(stream.Local, "_divisor", slow_check)
    run("cross-entropy", "x.npy", "--targets", "y.npy", "--grad", "g.npy")
    seconds, rate = re.search(r"4\.0 kB in ([\d.]+) s, ([\d.]+) kB/s", capsys.readouterr().err).groups()
    assert float(seconds) >= 0.6
    assert float(rate) <= 4 / 0.6


def test_the_summary_has_a_rate(capsys):
    np.save("x.npy", logits())
    run("softmax", "x.npy", "-o", "p.npy")
    words = capsys.readouterr().err
    assert re.fullmatch(r"softmax: 4\.0 kB in [\d.]+ s, [\d.]+ (bytes|kB|MB|GB)/s -> p\.npy\n", words)


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_sees_progress(rich, capsys, monkeypatch):
    np.save("x.npy", logits())
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = stream.Progress("softmax", 4000)
    for _ in range(4):
        progress.advance(1000)
        time.sleep(0.01)
    progress.stop()
    words = capsys.readouterr().err
    assert "softmax" in words
    assert rich or re.search(r"\rsoftmax +25% [\d.]+ \w+/s ", words)
    assert progress.summary().startswith("4.0 kB in ")


BRIEF = """
import os, sys
os.chdir(sys.argv[1])
from fastsoftmax.tools.cli import main
assert main(["run", "softmax", "x.npy", "-o", "p.npy", "--force"]) == 0
print("numba" in sys.modules)
"""


def test_numba_is_not_imported_if_there_is_machine_code(tmp_path):
    """Its import takes longer than everything else before the first block."""
    np.save("x.npy", logits())
    environment = {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": tmp_path / "cache"}
    found = [child.run(BRIEF, tmp_path, **environment).split()[-1] for _ in range(2)]
    assert found == ["True", "False"]


MEMORY = """
import os, sys
os.chdir(sys.argv.pop())
from fastsoftmax.tools.cli import main
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
assert main(["run", sys.argv[1], "small.npy", "-o", "y.npy", "--force", *sys.argv[3:]]) == 0
before = peak()
assert main(["run", sys.argv[1], sys.argv[2], "-o", "y.npy", "--force", *sys.argv[3:]]) == 0
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("axis", [-1, 0], ids=["in one stretch", "in many"])
def test_memory_does_not_grow_with_the_file(axis):
    """A sparse file of 800 MB needs a few blocks more than a small one: 7 of 2 MB, or 3 scattered of 128 MB."""
    shape = (200_000, 1000) if axis else (1000, 200_000)
    np.lib.format.open_memmap("large.npy", mode="w+", dtype=np.float32, shape=shape)
    np.save("small.npy", np.zeros((500, 500), np.float32))
    grown = int(child.run(MEMORY, "logsumexp", "large.npy", "--axis", axis, os.getcwd()))
    assert grown < (500_000 if axis == 0 else 100_000)


# --- a Dask cluster -------------------------------------------------------------------------------------------


def test_what_a_worker_says_arrives_with_its_status():
    error = pickle.loads(pickle.dumps(files.RunError("x.npy became shorter", files.BROKEN)))
    assert (str(error), error.status) == ("x.npy became shorter", files.BROKEN)


def _other_commands_on_a_scheduler(x, labels, weight, address, capsys):
    """Tables, draws, metrics and losses of single logits: the bits of the same command in this process."""
    capsys.readouterr()
    flags = ("--targets", "y.npy", "--ignore-index", -100)
    for command in ("label-statistics", "linear-softmax-statistics"):
        more = ("--weight", "weight.npy") if command.startswith("linear") else ("--temperature", 0.7)
        run(command, "x.npy", *flags, *more, "-o", "here.npy", "--force")
        run(command, "x.npy", *flags, *more, "-o", "there.npy", "--force", *address)
        np.testing.assert_array_equal(np.load("there.npy"), np.load("here.npy"))
        assert np.load("there.npy").dtype == np.load("here.npy").dtype
    for more in ((), ("--size", 3, "--no-replace", "--top-k", 5)):
        run("categorical", "x.npy", "--seed", 4, *more, "-o", "here.npy", "--force")
        run("categorical", "x.npy", "--seed", 4, *more, "-o", "there.npy", "--force", *address)
        np.testing.assert_array_equal(np.load("there.npy"), np.load("here.npy"))
    np.save("t.npy", np.random.default_rng(1).random(x.shape))
    np.save("c.npy", np.linspace(0.5, 2, 11))
    flags = ("--targets", "t.npy", "--pos-weight", "c.npy", "--sample-weight", "t.npy")
    capsys.readouterr()
    run("binary-cross-entropy", "x.npy", *flags, "--grad", "here.npy", "--force")
    here = capsys.readouterr().out
    run("binary-cross-entropy", "x.npy", *flags, "--grad", "there.npy", "--force", *address)
    assert capsys.readouterr().out == here
    np.testing.assert_array_equal(np.load("there.npy"), np.load("here.npy"))
    run("binary-focal-loss-hessian-diag", "x.npy", "--targets", "t.npy", "-o", "here.npy", "--force")
    run("binary-focal-loss-hessian-diag", "x.npy", "--targets", "t.npy", "-o", "there.npy", "--force", *address)
    np.testing.assert_array_equal(np.load("there.npy"), np.load("here.npy"))
    np.save("s.npy", np.random.default_rng(2).random(len(x)))
    flags = ("--targets", "y.npy", "--ignore-index", -100, "--sample-weight", "s.npy", "--json")
    capsys.readouterr()
    run("metrics", "x.npy", *flags)
    here = capsys.readouterr().out
    run("metrics", "x.npy", *flags, *address)
    assert capsys.readouterr().out == here
    assert json.loads(here)["count"] == (labels != -100).sum()


def test_on_a_dask_scheduler(capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")
    x = logits((400, 11))
    labels = np.arange(400) % 13 - 2
    np.save("x.npy", x)
    np.save("y.npy", labels)
    np.save("w.npy", np.linspace(0.5, 2, 11))
    np.save("bad.npy", np.arange(400) % 12)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    with distributed.LocalCluster(processes=True, **options) as cluster:
        address = ("--scheduler", cluster.scheduler_address)
        run("softmax", "x.npy", "-o", "p.npy", *address)
        np.testing.assert_array_equal(np.load("p.npy"), fs.softmax(x))
        run("softmax-entropy", "x.npy", "-o", "e.npy", "--grad", "d.npy", *address)
        entropy, slope = fs.softmax_entropy_with_grad(x)
        np.testing.assert_array_equal(np.load("e.npy"), entropy)
        np.testing.assert_array_equal(np.load("d.npy"), slope)
        ignored = np.where(labels < 0, -100, labels)
        np.save("y.npy", ignored)
        given = ("--targets", "y.npy", "--ignore-index", -100, "--class-weight", "w.npy")
        run("cross-entropy", "x.npy", *given, "--grad", "g.npy", *address)
        keywords = {"ignore_index": -100, "class_weight": np.load("w.npy")}
        loss, slope = fs.cross_entropy_with_grad(x, ignored, **keywords)
        assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=2e-7)
        np.testing.assert_array_equal(np.load("g.npy"), slope)
        monkeypatch.setattr(stream, "ROWS", 64)
        weight = logits((11, 11))
        np.save("weight.npy", weight)
        results = ("--grad", "l.npy", "--grad-weight", "k.npy")
        run("linear-cross-entropy", "x.npy", "--weight", "weight.npy", *given, *results, *address)
        loss, gradients = fs.linear_cross_entropy_with_grad(x, weight, ignored, **keywords)
        assert float(capsys.readouterr().out) == pytest.approx(float(loss), rel=4e-7)
        np.testing.assert_allclose(np.load("l.npy"), gradients.features, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(np.load("k.npy"), gradients.weight, rtol=1e-5, atol=1e-8)
        monkeypatch.setattr(stream, "TASK_BYTES", 4096)
        _other_commands_on_a_scheduler(x, ignored, weight, address, capsys)
        run("cross-entropy", "x.npy", "--targets", "bad.npy", "--grad", "h.npy", *address, status=3)
        assert re.search(r"targets\[\d*\] is 11, .* h\.npy not written", capsys.readouterr().err)
        assert "h.npy" not in names()
        with monkeypatch.context() as patch:
            begin = stream.Distributed.run

            def truncated(self, progress):
                os.truncate("x.npy", 3000)
                begin(self, progress)

            patch.setattr(stream.Distributed, "run", truncated)
            run("softmax", "x.npy", "-o", "h.npy", *address, status=3)  # a worker says that it could not begin
            assert re.search(r"x\.npy is truncated: .*; h\.npy not written\n", capsys.readouterr().err)
    assert not [name for name in names() if name.endswith(".part")]


def test_the_scheduler_is_an_extra(monkeypatch, capsys):
    np.save("x.npy", logits())
    monkeypatch.setitem(sys.modules, "distributed", None)
    run("softmax", "x.npy", "-o", "p.npy", "--scheduler", "tcp://127.0.0.1:9", status=2)
    words = "fastsoftmax run: --scheduler needs Dask: pip install 'fastsoftmax[dask]'\n"
    assert capsys.readouterr().err == words
