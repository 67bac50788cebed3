"""Use with pandas, xarray and scikit-learn, as docs/guide/migrating.md shows it."""

import numpy as np
import pytest

import fastsoftmax as fs

X = np.random.default_rng(3).normal(size=(12, 5)).astype(np.float32)
LABELS = np.arange(12) % 5


def test_pandas_objects_are_read_as_arrays():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcde"), index=range(100, 112))
    labels = pd.Series(LABELS, index=frame.index)
    np.testing.assert_array_equal(fs.softmax(frame), fs.softmax(X))
    np.testing.assert_array_equal(fs.logsumexp(frame["a"]), fs.logsumexp(X[:, 0]))
    weights = pd.Series(np.linspace(1, 2, 12), index=frame.index)
    keywords = {"sample_weight": weights, "class_weight": pd.Series(np.ones(5))}
    loss, slope = fs.cross_entropy_with_grad(frame, labels, **keywords)
    expected = fs.cross_entropy_with_grad(X, LABELS, sample_weight=np.linspace(1, 2, 12), class_weight=np.ones(5))
    assert loss == expected[0]
    np.testing.assert_array_equal(slope, expected[1])
    assert type(slope) is np.ndarray


def test_pandas_objects_without_a_numeric_dtype_are_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="dtype object"):
        fs.softmax(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}))


@pytest.mark.parametrize("chunks", [None, {"row": 4}, {"row": 4, "class": 2}])
def test_xarray(chunks):
    """Dimensions go by name and coordinates are kept. Results of Dask arrays are lazy and keep their chunks."""
    xr = pytest.importorskip("xarray")
    array = xr.DataArray(X.T, dims=("class", "row"), coords={"row": np.arange(12) * 10, "class": list("abcde")})
    if chunks is not None:
        pytest.importorskip("dask.array")
        array = array.chunk(chunks)
    cores = {"input_core_dims": [["class"]], "dask": "allowed"}
    probs = xr.apply_ufunc(fs.softmax, array, output_core_dims=[["class"]], **cores)
    assert probs.dims == ("row", "class")
    lse = xr.apply_ufunc(fs.logsumexp, array, **cores)
    if chunks is not None:
        assert probs.chunks is not None
        assert dict(probs.chunksizes)["class"] == dict(array.chunksizes)["class"]
    np.testing.assert_allclose(probs.transpose("row", "class"), fs.softmax(X), rtol=1e-6)
    np.testing.assert_allclose(lse, fs.logsumexp(X), rtol=1e-6)
    np.testing.assert_array_equal(probs.coords["row"], array.coords["row"])
    np.testing.assert_array_equal(probs.coords["class"], array.coords["class"])
    labels = xr.DataArray(LABELS, dims="row", coords={"row": array.coords["row"]})
    losses = xr.apply_ufunc(
        fs.cross_entropy,
        array,
        labels,
        input_core_dims=[["class"], []],
        kwargs={"reduction": "none"},
        dask="allowed",
    )
    assert losses.dims == ("row",)
    np.testing.assert_allclose(losses, fs.cross_entropy(X, LABELS, reduction="none"), rtol=1e-6)


def test_scikit_learn_pipeline():
    """As a step without state, softmax can be cloned, pickled, put before a classifier and searched over."""
    pipeline_module = pytest.importorskip("sklearn.pipeline")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import FunctionTransformer

    softmax = FunctionTransformer(fs.softmax, kw_args={"temperature": 2.0}, feature_names_out="one-to-one")
    pipeline = pipeline_module.make_pipeline(softmax, LogisticRegression())
    fitted = clone(pipeline).fit(X, LABELS)
    np.testing.assert_array_equal(fitted[:-1].transform(X), fs.softmax(X, temperature=2.0))
    assert fitted.predict_proba(X).shape == (12, 5)
    fitted.set_params(functiontransformer__kw_args={"temperature": 1.0})
    np.testing.assert_array_equal(fitted[:-1].transform(X), fs.softmax(X))
