"""DataArrays of xarray: dimensions by name, coordinates kept, lazy arrays stay lazy, the same bits as NumPy's."""

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import special

xr = pytest.importorskip("xarray")

TIME, CLASSES = np.arange(4) * 10, list("abc")


def array(seed=0, dims=("time", "class", "place")):
    sizes = {"time": 4, "class": 3, "place": 5}
    data = np.random.default_rng(seed).normal(0, 2, [sizes[dim] for dim in dims])
    coords = {"time": TIME, "class": CLASSES, "run": 7}
    if "place" in dims:
        coords["height"] = ("place", np.arange(5.0))
    return xr.DataArray(data, dims=dims, coords=coords, name="scores", attrs={"units": "nats"})


def labels(dims=("time", "place")):
    found = xr.DataArray(np.arange(20).reshape(4, 5) % 3, dims=("time", "place"), coords={"time": TIME})
    return found.transpose(*dims)


X = array()


def check(found, expected, dims):
    assert isinstance(found, xr.DataArray)
    assert found.dims == dims
    np.testing.assert_array_equal(found.data, expected)
    assert found.name == "scores"
    assert int(found.coords["run"]) == 7
    for dim, values in {"time": TIME, "class": CLASSES}.items():
        assert (dim in found.coords) == (dim in dims)
        if dim in dims:
            np.testing.assert_array_equal(found.coords[dim], values)
    assert ("height" in found.coords) == ("place" in dims)


@pytest.mark.parametrize("axis", ["class", 1, -2])
def test_axis_by_name_or_position(axis):
    check(fs.softmax(X, axis=axis), fs.softmax(X.values, axis=1), X.dims)
    check(fs.logsumexp(X, axis=axis), fs.logsumexp(X.values, axis=1), ("time", "place"))
    check(fs.softmax_entropy(X, axis), fs.softmax_entropy(X.values, 1), ("time", "place"))


def test_default_axis_is_the_last():
    check(fs.log_softmax(X), fs.log_softmax(X.values), X.dims)
    check(fs.logsumexp(X), fs.logsumexp(X.values), ("time", "class"))


def test_several_axes():
    check(fs.softmax(X, axis=("class", "time")), fs.softmax(X.values, axis=(1, 0)), X.dims)
    check(fs.logsumexp(X, axis=("class", 2)), fs.logsumexp(X.values, axis=(1, 2)), ("time",))
    check(fs.logsumexp(X, axis=None), fs.logsumexp(X.values, axis=None), ())
    check(special.softmax(X), special.softmax(X.values), X.dims)


def test_keepdims():
    found = fs.logsumexp(X, axis="class", keepdims=True)
    assert found.sizes == {"time": 4, "class": 1, "place": 5}
    assert "class" not in found.coords
    np.testing.assert_array_equal(found.data, fs.logsumexp(X.values, axis=1, keepdims=True))


def test_other_arrays_by_name():
    tangent = array(1, ("place", "time", "class"))
    expected = fs.softmax_jvp(X.values, tangent.transpose(*X.dims).values, axis=1)
    check(fs.softmax_jvp(X, tangent, axis="class"), expected, X.dims)
    keep = xr.DataArray([True, False, True], dims="class", coords={"class": CLASSES})
    expected = fs.softmax(X.values, axis=1, where=keep.values[:, None])
    check(fs.softmax(X, axis="class", where=keep), expected, X.dims)


@pytest.mark.parametrize("dims", [("time", "place"), ("place", "time")])
def test_losses(dims):
    weights = xr.DataArray(np.linspace(1, 2, 20).reshape(4, 5), dims=("time", "place")).transpose(*dims)
    classes = xr.DataArray([1.0, 2.0, 3.0], dims="class")
    plain = {"sample_weight": weights.transpose("time", "place").values, "class_weight": classes.values}
    options = {"sample_weight": weights, "class_weight": classes}
    loss, slope = fs.cross_entropy_with_grad(X, labels(dims), axis="class", **options)
    expected = fs.cross_entropy_with_grad(X.values, labels().values, axis=1, **plain)
    check(loss, expected[0], ())
    check(slope, expected[1], X.dims)
    rows = fs.cross_entropy(X, labels(dims), axis="class", reduction="none")
    check(rows, fs.cross_entropy(X.values, labels().values, axis=1, reduction="none"), ("time", "place"))


def test_distributions():
    shares = fs.softmax(array(3, ("class", "place", "time")), axis="class")
    found = fs.cross_entropy_grad(X, shares, axis="class")
    check(found, fs.cross_entropy_grad(X.values, shares.transpose(*X.dims).values, axis=1), X.dims)


def test_arrays_without_names_go_by_position():
    found = fs.cross_entropy(X, labels().values, axis="class", reduction="none")
    check(found, fs.cross_entropy(X.values, labels().values, axis=1, reduction="none"), ("time", "place"))
    plain = fs.cross_entropy(X.values, labels(), axis=1)
    assert type(plain) is np.float64
    assert plain == fs.cross_entropy(X.values, labels().values, axis=1)


def test_matrices():
    found = fs.softmax_jacobian(X, axis="class")
    check(found, fs.softmax_jacobian(X.values, axis=1), ("time", "place", "class", "class_2"))
    np.testing.assert_array_equal(found.coords["class_2"], CLASSES)
    other = xr.DataArray(np.zeros((2, 3)), dims=("a", "a_2"))
    assert fs.softmax_jacobian(other, axis="a").dims == ("a_2", "a", "a_2_2")


def test_statistics():
    found = fs.label_statistics(X, labels(), axis="class")
    expected = fs.label_statistics(X.values, labels().values, axis=1)
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        check(one, other, ("time", "place"))


def test_draws():
    check(fs.categorical(X, "class", rng=1), fs.categorical(X.values, 1, rng=1), ("time", "place"))
    expected = fs.categorical(X.values, 1, rng=1, size=6)
    check(fs.categorical(X, "class", rng=1, size=6), expected, ("draw", "time", "place"))
    expected = fs.categorical(X.values, 1, rng=1, size=(2, 3))
    check(fs.categorical(X, "class", rng=1, size=(2, 3)), expected, ("draw_0", "draw_1", "time", "place"))
    check(fs.filter_logits(X, "class", top_k=2), fs.filter_logits(X.values, 1, top_k=2), X.dims)


def test_out():
    out = array(1, ("class", "time", "place"))
    assert fs.softmax(X, axis="class", out=out) is out
    np.testing.assert_array_equal(out.transpose(*X.dims), fs.softmax(X.values, axis=1))
    entropy, slope = fs.softmax_entropy_with_grad(X, "class", out=out)
    assert slope is out
    assert entropy.dims == ("time", "place")
    with pytest.raises(TypeError, match=r"softmax: out must be an xarray.DataArray as x, got ndarray"):
        fs.softmax(X, out=np.empty_like(X.values))
    with pytest.raises(
        ValueError, match=r"softmax: out has the dimensions \('class', 'time'\), expected \('time', "
    ):
        fs.softmax(X, out=out[..., 0])


@pytest.mark.parametrize("chunks", [{"time": 2}, {"time": 2, "class": 1}])
def test_lazy_arrays_stay_lazy(chunks):
    da = pytest.importorskip("dask.array")

    def refuse(block):
        raise AssertionError("computed")

    lazy = X.copy(data=da.from_array(X.values).map_blocks(refuse, dtype=float)).chunk(chunks)
    for found in (
        fs.softmax(lazy, axis="class"),
        fs.logsumexp(lazy, axis="class"),
        fs.cross_entropy(lazy, labels(), axis="class"),
        *fs.cross_entropy_with_grad(lazy, labels(), axis="class"),
        special.log_softmax(lazy, axis="class"),
    ):
        assert isinstance(found.data, da.Array)
    chunked = X.chunk(chunks)
    np.testing.assert_allclose(fs.softmax(chunked, "class").compute(), fs.softmax(X.values, 1), rtol=1e-14)
    loss = fs.cross_entropy(chunked, labels().chunk({"place": 2}), "class")
    np.testing.assert_allclose(loss.compute(), fs.cross_entropy(X.values, labels().values, 1), rtol=1e-14)


def test_binary_losses():
    """Weights have some of the dimensions, in any order."""
    targets = (array(2, ("place", "time", "class")) > 0).drop_vars("run")
    weights = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("class", "time"), coords={"class": CLASSES})
    plain = targets.transpose(*X.dims).values, {"sample_weight": weights.values.T[..., None]}
    options = {"sample_weight": weights}
    expected = fs.binary_cross_entropy_with_grad(X.values, plain[0], **plain[1])
    loss, slope = fs.binary_cross_entropy_with_grad(X, targets, **options)
    check(loss, expected[0], ())
    check(slope, expected[1], X.dims)
    for lazy in (X, X.chunk({"time": 2, "place": 3})):
        expected = fs.binary_focal_loss(X.values, plain[0], reduction="none", **plain[1])
        check(fs.binary_focal_loss(lazy, targets, reduction="none", **options), expected, X.dims)
        expected = fs.binary_cross_entropy_hessian_diag(X.values, plain[0], pos_weight=np.arange(5.0))
        positive = xr.DataArray(np.arange(5.0), dims="place")
        check(fs.binary_cross_entropy_hessian_diag(lazy, targets, pos_weight=positive), expected, X.dims)
    with pytest.raises(
        ValueError, match=r"sample_weight has the dimensions \('space',\), expected some of \('time', "
    ):
        fs.binary_cross_entropy(X, targets, sample_weight=xr.DataArray(np.ones(5), dims="space"))


def test_errors():
    with pytest.raises(ValueError, match=r"softmax: axis is 'classes', expected one of the dimensions \('time', "):
        fs.softmax(X, axis="classes")
    with pytest.raises(np.exceptions.AxisError):
        fs.softmax(X, axis=3)
    with pytest.raises(TypeError, match=r"axis must be an integer, got 1.5"):
        fs.softmax(X, axis=1.5)
    with pytest.raises(ValueError, match="names an axis twice"):
        fs.softmax(X, axis=("class", 1))
    with pytest.raises(TypeError, match="axis must be an integer, got 'class'"):
        fs.softmax(X.values, axis="class")
    with pytest.raises(
        ValueError, match=r"targets has the dimensions \('time', 'class'\), expected \('time', 'plac"
    ):
        fs.cross_entropy(X, X[..., 0] > 0, axis="class")
    with pytest.raises(ValueError, match=r"targets: its coordinates are not those of logits"):
        fs.cross_entropy(X, labels().assign_coords(time=TIME + 1), axis="class")
    with pytest.raises(IndexError, match=r"targets\[0, 0\] is 3"):
        fs.cross_entropy(X, labels() + 3, axis="class")


def test_another_library_inside():
    """Whatever holds the data."""
    strict = pytest.importorskip("array_api_strict")
    pytest.importorskip("array_api_compat")
    inside = xr.DataArray(np.zeros((2, 3)), dims=("a", "b")).copy(data=strict.zeros((2, 3)))
    found = fs.softmax(inside, axis="b")
    assert type(found.data) is type(inside.data) is type(strict.zeros(1))
    assert found.dims == ("a", "b")
