"""Arrays of other libraries in memory: read without a copy, the same bits as NumPy's, results of the same kind."""

import timeit

import child
import functions
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import special
from fastsoftmax.arrays import lazy
from fastsoftmax.backends import interchange


class Torch:
    """How the tests make and read PyTorch's tensors."""

    name, mutable = "torch.Tensor", True

    def __init__(self):
        self.library = pytest.importorskip("torch")
        self.type = self.library.Tensor

    def make(self, array):
        return self.library.from_numpy(np.ascontiguousarray(array)).reshape(np.shape(array))

    def read(self, array):
        return array.numpy()

    def address(self, array):
        return array.data_ptr()


class Jax:
    name, mutable = "jax.Array", False

    def __init__(self):
        self.library = pytest.importorskip("jax")
        self.type = self.library.Array

    def make(self, array):
        with self.library.enable_x64(True):
            return self.library.numpy.asarray(array)

    def read(self, array):
        return np.asarray(array)

    def address(self, array):
        return array.unsafe_buffer_pointer()


class Strict:
    name, mutable = "array_api_strict.Array", True

    def __init__(self):
        self.library = pytest.importorskip("array_api_strict")
        self.type = type(self.library.asarray(0))

    def make(self, array):
        return self.library.asarray(array)

    def read(self, array):
        return np.from_dlpack(array)

    def address(self, array):
        return np.from_dlpack(array).ctypes.data


@pytest.fixture(params=[Torch, Jax, Strict], ids=lambda library: library.__name__.lower())
def kind(request):
    pytest.importorskip("array_api_compat")
    return request.param()


def logits(shape=(4, 6), dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(dtype)


def check(kind, found, expected):
    """The results of both libraries, which may be several."""
    if isinstance(expected, tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            check(kind, one, other)
        return
    if expected is None:
        assert found is None
        return
    assert isinstance(found, kind.type)
    array = kind.read(found)
    assert array.shape == np.shape(expected)
    if kind.name != "jax.Array":  # whose defaults have no 64-bit numbers
        assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, np.asarray(expected).astype(array.dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int8])
@pytest.mark.parametrize("function", functions.ALL, ids=str)
def test_every_function(kind, function, dtype):
    if kind.name.startswith("array_api") and dtype == np.float16:
        pytest.skip("not in the standard")
    x = logits(dtype=dtype)
    other, options = function.other(x), dict(function.options)
    if kind.name.startswith("array_api"):
        other = tuple(one.astype(np.float32) if one.dtype == np.float16 else one for one in other)
    found = function.function(kind.make(x), *map(kind.make, other), **options)
    check(kind, found, function.function(x, *other, **options))


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("softmax", [logits()], {"axis": 0, "temperature": 2.0}),
        ("softmax", [logits()], {"axis": None, "where": logits() > 0}),
        ("logsumexp", [logits()], {"axis": (0, 1), "keepdims": True}),
        ("logsumexp", [logits((5,))], {}),
        ("softmax_jvp", [logits(), logits(seed=1)], {"from_probs": True}),
        ("log_softmax_jacobian", [logits()], {}),
        ("softmax_entropy_with_grad", [logits()], {}),
        ("cross_entropy", [logits(), np.arange(4)], {}),
        ("cross_entropy_with_grad", [logits(), np.arange(4)], {"sample_weight": np.ones(4), "z_loss": 0.1}),
        ("cross_entropy_with_grad", [logits(), np.abs(logits(seed=1))], {"class_weight": np.arange(6.0)}),
        ("cross_entropy_hvp", [logits(), np.arange(4), logits(seed=1)], {"ignore_index": 2}),
        ("squared_error_with_grad", [logits(), logits(seed=1)], {"reduction": "none"}),
        ("binary_cross_entropy", [logits(), logits() > 0], {"pos_weight": np.arange(6.0), "label_smoothing": 0.1}),
        ("binary_cross_entropy_grad", [logits(), logits() > 0], {}),
        ("binary_focal_loss_with_grad", [logits(), logits() > 0], {"gamma": 0.5, "sample_weight": np.ones(6)}),
        ("binary_cross_entropy", [logits(), logits() > 0], {"reduction": "none", "sample_weight": np.ones(6)}),
        ("binary_focal_loss_hessian_diag", [logits(), logits() > 0], {"reduction": "sum"}),
        ("label_statistics", [logits(), np.arange(4)], {}),
        ("filter_logits", [logits()], {"top_k": 2}),
        ("categorical", [logits()], {"uniforms": np.full((3, 4), 0.3), "size": 3}),
        ("categorical", [logits()], {"rng": 7}),
        ("segment_softmax", [logits((9,)), np.array([0, 2, 9])], {}),
        ("segment_softmax_vjp", [logits((9,)), np.array([0, 2, 9]), logits((9,))], {}),
        ("segment_cross_entropy_with_grad", [logits((9,)), np.array([0, 2, 9]), np.array([1, 3])], {}),
        ("segment_categorical", [logits((9,)), np.array([0, 2, 9])], {"rng": 3}),
        ("linear_cross_entropy", [logits(), logits((3, 6)), np.array([0, 1, 2, 1])], {"softcap": 3.0}),
        ("linear_cross_entropy_with_grad", [logits(), logits((3, 6)), np.array([0, 1, 2, 1]), logits((3,))], {}),
        ("linear_cross_entropy_with_grad", [logits(), logits((3, 6)), np.array([0, 1, 2, 1])], {"wrt": "weight"}),
        ("linear_softmax_statistics", [logits(), logits((3, 6)), np.array([0, 1, 2, 1])], {}),
    ],
)
def test_arguments_and_options(kind, name, arguments, options):
    def converted(value):
        return kind.make(value) if isinstance(value, np.ndarray) else value

    found = getattr(fs, name)(*map(converted, arguments), **{key: converted(v) for key, v in options.items()})
    check(kind, found, getattr(fs, name)(*arguments, **options))


def test_input_is_not_copied(kind):
    x = kind.make(logits((100, 100)))
    known = interchange._look_up("softmax", "x", x)
    assert known.read("softmax", "x", x).ctypes.data == kind.address(x)


def test_results_are_where_they_were_computed(kind):
    if not kind.mutable:
        pytest.skip("JAX copies")
    array = logits()
    known = interchange._look_up("softmax", "x", kind.make(array))
    assert kind.address(known.make(array)) == array.ctypes.data


def test_out(kind):
    x, out = kind.make(logits()), kind.make(np.zeros((4, 6), np.float32))
    if not kind.mutable:
        with pytest.raises(TypeError, match=r"softmax: out is a jax.Array, which cannot be written to"):
            fs.softmax(x, out=out)
        return
    assert fs.softmax(x, out=out) is out
    np.testing.assert_array_equal(kind.read(out), fs.softmax(logits()))
    loss, slope = fs.cross_entropy_with_grad(x, kind.make(np.arange(4)), out=out)
    assert slope is out
    assert isinstance(loss, kind.type)
    assert fs.softmax(x, out=x) is x
    np.testing.assert_array_equal(kind.read(x), fs.softmax(logits()))
    with pytest.raises(ValueError, match=r"softmax: out has shape \(2,\), expected \(4, 6\)"):
        fs.softmax(x, out=kind.make(np.zeros(2, np.float32)))


def test_kinds_are_not_mixed(kind):
    x, labels = logits(), np.arange(4)
    with pytest.raises(
        TypeError, match=rf"logits \({kind.name}\) and targets \(numpy.ndarray\) differ; expected arrays of"
    ):
        fs.cross_entropy(kind.make(x), labels)
    with pytest.raises(
        TypeError, match=rf"logits \(numpy.ndarray\) and targets \({kind.name}\) differ; expected arrays of"
    ):
        fs.cross_entropy(x, kind.make(labels))
    with pytest.raises(TypeError, match=rf"x \({kind.name}\) and out \(numpy.ndarray\) differ"):
        fs.softmax(kind.make(x), out=np.empty_like(x))
    with pytest.raises(TypeError, match=r"out must be a numpy.ndarray"):
        fs.softmax(x, out=kind.make(x))
    with pytest.raises(TypeError, match=r"indptr \(numpy.ndarray\) differ; expected arrays of one kind"):
        fs.segment_softmax(kind.make(x[0]), np.array([0, 6]))
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"targets \(pandas.*Series\) differ"):
        fs.cross_entropy(kind.make(x), pd.Series(labels))


def test_lists_and_numbers_go_with_every_kind(kind):
    x = logits()
    found = fs.cross_entropy(
        kind.make(x), [0, 1, 2, 3], sample_weight=[1, 2, 3, 4], label_smoothing=np.float64(0.1)
    )
    check(kind, found, fs.cross_entropy(x, np.arange(4), sample_weight=[1, 2, 3, 4], label_smoothing=0.1))


def test_different_libraries():
    torch, strict = pytest.importorskip("torch"), pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match=r"logits \(torch.Tensor\) and targets \(array_api_strict.Array\) differ"):
        fs.cross_entropy(torch.zeros(2, 3), strict.asarray([0, 1]))


def test_errors_are_those_of_arrays(kind):
    x = kind.make(logits())
    with pytest.raises(np.exceptions.AxisError):
        fs.softmax(x, axis=2)
    with pytest.raises(IndexError, match=r"targets\[1\] is 6, expected a label from 0 to 5"):
        fs.cross_entropy(x, [0, 6, 0, 0])
    with pytest.raises(TypeError, match="softmax: x has dtype complex64"):
        fs.softmax(kind.make(logits().astype(np.complex64)))


def test_special(kind):
    x, b = logits(), np.abs(logits(seed=1))
    check(kind, special.softmax(kind.make(x)), special.softmax(x))
    check(kind, special.log_softmax(kind.make(x), axis=1), special.log_softmax(x, axis=1))
    check(kind, special.logsumexp(kind.make(x)), special.logsumexp(x))
    found = special.logsumexp(kind.make(x), axis=1, b=kind.make(-b), keepdims=True, return_sign=True)
    check(kind, found, special.logsumexp(x, axis=1, b=-b, keepdims=True, return_sign=True))
    check(kind, special.softmax(kind.make(x + 1j * x), axis=0), special.softmax(x + 1j * x, axis=0))
    with pytest.raises(TypeError, match=rf"^logsumexp: a \({kind.name}\) and b \(numpy.ndarray\) differ"):
        special.logsumexp(kind.make(x), b=b)


# --- PyTorch ------------------------------------------------------------------------------------------------


def test_tensors_that_cannot_be_read():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"softmax: x is a tensor that requires grad; call detach\(\) first"):
        fs.softmax(torch.zeros(3, requires_grad=True))
    with pytest.raises(TypeError, match="targets is a tensor that requires grad"):
        fs.cross_entropy(torch.zeros(2, 3), torch.nn.Parameter(torch.zeros(2, 3)))
    with pytest.raises(TypeError, match=r"x is a tensor on the device meta; call cpu\(\) first"):
        fs.softmax(torch.zeros(3, device="meta"))
    with pytest.raises(TypeError, match=r"softmax: x: .*to_dense"):
        fs.softmax(torch.ones(3).to_sparse())
    with pytest.raises(TypeError, match=r"softmax: x: .*resolve_conj"):
        fs.softmax(torch.ones(3, dtype=torch.complex64).conj())
    with pytest.raises(TypeError, match=r"softmax: x: .*Float8"):
        fs.softmax(torch.ones(3).to(torch.float8_e5m2))


def test_tensors_of_any_layout():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits((5, 4, 3)))
    for view in (x.transpose(0, 2), x[::2, 1:], x[:, :, :1].expand(5, 4, 3), torch.nn.Parameter(x, False)):
        np.testing.assert_array_equal(fs.softmax(view).numpy(), fs.softmax(view.numpy()))
        assert type(fs.softmax(view)) is torch.Tensor


def test_out_tensors_that_cannot_be_written():
    """They are refused as other arguments are, in small calls without options, too; nothing is written then."""
    torch = pytest.importorskip("torch")
    x, out = torch.ones(2, 3), torch.full((2, 3), 7.0)
    for _ in range(3):
        for function in (fs.softmax, fs.log_softmax):
            assert function(x, out=out.clone()).shape == (2, 3)
            with pytest.raises(TypeError, match=r"softmax: out is a tensor that requires grad"):
                function(x, out=torch.zeros(2, 3, requires_grad=True))
            with pytest.raises(TypeError, match=r"softmax: out is a tensor that requires grad"):
                function(x, out=torch.nn.Parameter(torch.zeros(2, 3)))
            with pytest.raises(TypeError, match=r"softmax: x is a tensor that requires grad"):
                function(x.clone().requires_grad_(), out=out)
            with pytest.raises(TypeError, match="out is a tensor on the device meta"):
                function(x, out=torch.zeros(2, 3, device="meta"))
            with pytest.raises(TypeError, match=r"softmax: out: .*to_dense"):
                function(x, out=torch.zeros(2, 3).to_sparse())
            with pytest.raises(TypeError, match=r"softmax: out: .*resolve_conj"):
                function(x, out=torch.zeros(2, 3, dtype=torch.complex64).conj())
            with pytest.raises(TypeError, match=r"softmax: out: .*resolve_neg"):
                function(x, out=torch.zeros(2, 3, dtype=torch.complex64).conj().imag)
            with pytest.raises(TypeError, match="out has dtype float64, expected float32"):
                function(x, out=out.double())
            with pytest.raises(ValueError, match=r"out has shape \(3, 2\), expected \(2, 3\)"):
                function(x, out=out.reshape(3, 2))
            with pytest.raises(TypeError, match=r"x \(torch.Tensor\) and out \(numpy.ndarray\) differ"):
                function(x, out=np.zeros((2, 3), np.float32))
            assert (out == 7).all()


def test_out_tensors_of_any_layout():
    """Strided ones, ones that share memory with the input, and parameters."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits((4, 6)))
    expected = fs.softmax(logits((4, 6)))
    parameter = torch.nn.Parameter(torch.zeros(4, 6), False)
    for out in (torch.zeros(6, 4).T, torch.zeros(8, 6)[::2], parameter):
        for _ in range(2):
            assert fs.softmax(x, out=out) is out
            np.testing.assert_array_equal(out.numpy(), expected)
    for shift in (0, 1, 5):
        memory = torch.zeros(40)
        view, out = memory[:24].view(4, 6), memory[shift:][:24].view(4, 6)
        view[:] = x
        assert fs.softmax(view, out=out) is out
        np.testing.assert_array_equal(out.numpy(), expected)


def test_bfloat16():
    torch, bfloat16 = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes").bfloat16
    array = logits().astype(bfloat16)
    x = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    found = fs.softmax(x)
    assert found.dtype is torch.bfloat16
    np.testing.assert_array_equal(found.view(torch.int16).numpy(), fs.softmax(array).view(np.int16))
    out = torch.empty_like(x)
    assert fs.softmax(x, out=out) is out
    assert torch.equal(out, found)
    loss = fs.cross_entropy(x, torch.arange(4))
    assert float(loss) == float(fs.cross_entropy(array, np.arange(4)))


@pytest.mark.timed
def test_a_tensor_takes_little_longer_than_an_array():
    """3 us on a machine that is not busy, of which PyTorch's own conversions are 1.3; also with an output."""
    torch = pytest.importorskip("torch")
    array = logits((1, 10))
    tensor = torch.from_numpy(array)
    outputs = {"array": np.empty_like(array), "tensor": torch.empty_like(tensor)}
    best = {}
    for _ in range(100):
        for name, x in (("array", array), ("tensor", tensor)):
            fs.softmax(x)
            for out in (None, outputs[name]):
                seconds = timeit.timeit(lambda x=x, out=out: fs.softmax(x, out=out), number=100) / 100
                key = name, out is None
                best[key] = min(seconds, best.get(key, 1.0))
    for fresh in (True, False):
        assert best["tensor", fresh] - best["array", fresh] < 6e-6


# --- JAX ----------------------------------------------------------------------------------------------------


def test_traced_arrays():
    jax = pytest.importorskip("jax")
    advice = "softmax: x is traced by JAX and has no values yet; jax.pure_callback"
    with pytest.raises(TypeError, match=advice):
        jax.jit(fs.softmax)(jax.numpy.zeros(3))
    with pytest.raises(TypeError, match=advice):
        jax.vmap(fs.softmax)(jax.numpy.zeros((3, 2)))


def test_jax_bfloat16():
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.asarray(logits()).astype(jnp.bfloat16)
    found = fs.softmax(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found).view(np.int16), fs.softmax(np.asarray(x)).view(np.int16))


# --- other libraries ----------------------------------------------------------------------------------------


class Exporter:
    """An array of a library that nobody knows."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


def test_unknown_libraries():
    pytest.importorskip("array_api_compat")
    x = logits()
    found = fs.softmax(Exporter(x))
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, fs.softmax(x))
    with_array = type("Both", (Exporter,), {"__array__": lambda self, dtype=None, copy=None: self.array})
    np.testing.assert_array_equal(fs.softmax(with_array(x, device=2)), fs.softmax(x))
    loss = fs.cross_entropy(Exporter(x), np.arange(4))
    assert type(loss) is np.float32
    assert loss == fs.cross_entropy(x, np.arange(4))


def test_other_devices():
    pytest.importorskip("array_api_compat")
    with pytest.raises(TypeError, match=r"softmax: x is on another device \(number 2 of DLPack\); copy it to the"):
        fs.softmax(Exporter(logits(), device=2))


WITHOUT = """
import sys
import numpy as np
sys.modules["array_api_compat"] = None
import fastsoftmax as fs
class Exporter:
    def __dlpack__(self, **options): pass
    def __dlpack_device__(self): return 1, 0
    def __array_namespace__(self): pass
class Unknown:
    def __dlpack__(self, **options): return np.zeros(2).__dlpack__(**options)
    def __dlpack_device__(self): return 1, 0
try:
    fs.softmax(Exporter())
except ImportError as error:
    print(error)
print(fs.softmax(Unknown()))
"""


def test_without_the_extra():
    message, result = child.run(WITHOUT).splitlines()
    assert message == (
        "softmax: x is a __main__.Exporter: arrays of other libraries need array-api-compat, which pip install "
        "'fastsoftmax[interchange]' installs; else pass NumPy arrays"
    )
    assert result == "[0.5 0.5]"


def test_arrays_of_numpy_are_not_exchanged(monkeypatch):
    monkeypatch.setattr(lazy, "_exchange", [lambda: pytest.fail("asked")])
    x = logits().view(type("Sub", (np.ndarray,), {}))
    np.testing.assert_array_equal(fs.softmax(x), fs.softmax(logits()))
    assert not lazy.is_exchanged(np.float32)


# --- what is refused ----------------------------------------------------------------------------------------


def test_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    for made in (sparse.csr_array, sparse.coo_matrix):
        with pytest.raises(TypeError, match=r"dtype object, .*segment_softmax\(A.data, A.indptr\)"):
            fs.softmax(made(np.eye(3)))


def test_labels_that_are_strings():
    names, expected = ["cat", "dog", "cat", "emu"], "numpy.unique\\(labels, return_inverse=True\\)"
    for labels in (names, np.array(names), np.array(names, object)):
        with pytest.raises(TypeError, match=f"cross_entropy: targets has dtype .*{expected}"):
            fs.cross_entropy(logits(), labels)
    with pytest.raises(TypeError, match=expected):
        fs.label_statistics(logits(), names)
    with pytest.raises(TypeError) as raised:
        fs.softmax("hello")
    assert "unique" not in str(raised.value)
    assert fs.cross_entropy(logits(), np.unique(names, return_inverse=True)[1]) > 0


def test_nullable_columns():
    """Columns that pandas can make an array of numbers of are read; others are refused with the way to do it."""
    pd = pytest.importorskip("pandas")
    whole = pd.Series([1, 2, 3], dtype="Int64")
    np.testing.assert_array_equal(fs.softmax(whole), fs.softmax([1, 2, 3]))
    with pytest.raises(
        TypeError, match=r"x has dtype object, .*x.to_numpy\(dtype=float, na_value=float\('nan'\)\)"
    ):
        fs.softmax(pd.Series([1, pd.NA, 3], dtype=object))
