"""Names, signatures and documentation of the public functions, and the time of the import."""

import inspect
import pkgutil
import re
from pathlib import Path

import child
import pytest

import fastsoftmax as fs

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]

OPTIONS = (
    "class_weight=None, sample_weight=None, ignore_index=None, label_smoothing=0.0, z_loss=0.0, softcap=None, "
    "reduction='mean'"
)
FOCAL = "gamma=2.0, class_weight=None, sample_weight=None, ignore_index=None, reduction='mean'"
BINARY = "pos_weight=None, sample_weight=None, label_smoothing=0.0, reduction='mean'"
BINARY_FOCAL = "gamma=2.0, alpha=None, sample_weight=None, reduction='mean'"
LINEAR = f"(features, weight, targets, bias=None, *, {OPTIONS}"
DRAWS = "rng=None, uniforms=None, size=None, replace=True, temperature=1.0"
FILTERS = "top_k=None, top_p=None, min_p=None"
SEGMENT_OPTIONS = "sample_weight=None, ignore_index=None, label_smoothing=0.0, reduction='mean'"
PAIR = "(logits, target_logits, axis=-1, *, temperature=1.0"
WEIGHTED = "sample_weight=None, reduction='mean'"
# By hand: what users rely on. Everything else about a function follows from its signature.
SIGNATURES = {
    "linear_cross_entropy_hvp": (
        "(features, weight, targets, tangent, bias=None, tangent_bias=None, *, logits=None, "
        f"{OPTIONS}, block_bytes=134217728)"
    ),
    "linear_softmax_statistics": (
        "(features, weight, targets, bias=None, *, ignore_index=None, softcap=None, block_bytes=134217728)"
    ),
    "label_statistics": "(logits, labels, axis=-1, *, temperature=1.0, ignore_index=None)",
    "linear_cross_entropy": f"{LINEAR}, block_bytes=134217728)",
    "linear_cross_entropy_with_grad": (
        f"{LINEAR}, wrt=('features', 'weight', 'bias'), skip=False, block_bytes=134217728)"
    ),
    "softmax": "(x, axis=-1, *, where=None, temperature=1.0, out=None)",
    "log_softmax": "(x, axis=-1, *, where=None, temperature=1.0, out=None)",
    "logsumexp": "(x, axis=-1, *, where=None, keepdims=False, out=None)",
    "softmax_entropy": "(x, axis=-1, *, temperature=1.0, out=None)",
    "softmax_entropy_with_grad": "(x, axis=-1, *, temperature=1.0, out=None)",
    "softmax_jacobian": "(x, axis=-1, *, temperature=1.0, from_probs=False, out=None)",
    "softmax_jvp": "(x, tangent, axis=-1, *, temperature=1.0, from_probs=False, out=None)",
    "softmax_vjp": "(x, cotangent, axis=-1, *, temperature=1.0, from_probs=False, out=None)",
    "log_softmax_jacobian": "(x, axis=-1, *, temperature=1.0, out=None)",
    "log_softmax_jvp": "(x, tangent, axis=-1, *, temperature=1.0, out=None)",
    "log_softmax_vjp": "(x, cotangent, axis=-1, *, temperature=1.0, out=None)",
    "cross_entropy": f"(logits, targets, axis=-1, *, {OPTIONS})",
    "cross_entropy_grad": f"(logits, targets, axis=-1, *, {OPTIONS}, out=None)",
    "cross_entropy_with_grad": f"(logits, targets, axis=-1, *, {OPTIONS}, out=None)",
    "cross_entropy_hvp": f"(logits, targets, tangent, axis=-1, *, {OPTIONS}, out=None)",
    "cross_entropy_hessian_diag": f"(logits, targets, axis=-1, *, {OPTIONS}, out=None)",
    "cross_entropy_hessian": f"(logits, targets, axis=-1, *, {OPTIONS}, out=None)",
    "focal_loss": f"(logits, labels, axis=-1, *, {FOCAL})",
    "focal_loss_grad": f"(logits, labels, axis=-1, *, {FOCAL}, out=None)",
    "focal_loss_with_grad": f"(logits, labels, axis=-1, *, {FOCAL}, out=None)",
    "focal_loss_hessian_diag": f"(logits, labels, axis=-1, *, {FOCAL}, out=None)",
    "binary_cross_entropy": f"(logits, targets, *, {BINARY})",
    "binary_cross_entropy_grad": f"(logits, targets, *, {BINARY}, out=None)",
    "binary_cross_entropy_with_grad": f"(logits, targets, *, {BINARY}, out=None)",
    "binary_cross_entropy_hessian_diag": f"(logits, targets, *, {BINARY}, out=None)",
    "binary_focal_loss": f"(logits, targets, *, {BINARY_FOCAL})",
    "binary_focal_loss_grad": f"(logits, targets, *, {BINARY_FOCAL}, out=None)",
    "binary_focal_loss_with_grad": f"(logits, targets, *, {BINARY_FOCAL}, out=None)",
    "binary_focal_loss_hessian_diag": f"(logits, targets, *, {BINARY_FOCAL}, out=None)",
    "squared_error": "(logits, targets, axis=-1, *, sample_weight=None, reduction='mean')",
    "squared_error_grad": "(logits, targets, axis=-1, *, sample_weight=None, reduction='mean', out=None)",
    "squared_error_with_grad": "(logits, targets, axis=-1, *, sample_weight=None, reduction='mean', out=None)",
    "kl_divergence": f"{PAIR}, reverse=False, {WEIGHTED})",
    "kl_divergence_grad": f"{PAIR}, reverse=False, {WEIGHTED}, out=None)",
    "kl_divergence_with_grad": f"{PAIR}, reverse=False, {WEIGHTED}, out=None)",
    "js_divergence": f"{PAIR}, beta=0.5, {WEIGHTED})",
    "js_divergence_grad": f"{PAIR}, beta=0.5, {WEIGHTED}, out=None)",
    "js_divergence_with_grad": f"{PAIR}, beta=0.5, {WEIGHTED}, out=None)",
    "fit_temperature": "(logits, labels, axis=-1, *, sample_weight=None, ignore_index=None)",
    "categorical": f"(logits, axis=-1, *, {DRAWS}, {FILTERS}, where=None)",
    "filter_logits": f"(logits, axis=-1, *, {FILTERS}, temperature=1.0, out=None)",
    "segment_categorical": f"(x, indptr, *, {DRAWS}, {FILTERS})",
    "segment_softmax": "(x, indptr, *, out=None)",
    "segment_log_softmax": "(x, indptr, *, out=None)",
    "segment_logsumexp": "(x, indptr, *, out=None)",
    "segment_softmax_jvp": "(x, indptr, tangent, *, out=None)",
    "segment_softmax_vjp": "(x, indptr, cotangent, *, out=None)",
    "segment_cross_entropy": f"(x, indptr, targets, *, {SEGMENT_OPTIONS})",
    "segment_cross_entropy_with_grad": f"(x, indptr, targets, *, {SEGMENT_OPTIONS}, out=None)",
    "segment_softmax_entropy": "(x, indptr, *, out=None)",
    "segment_softmax_entropy_with_grad": "(x, indptr, *, out=None)",
    "segment_kl_divergence": f"(x, indptr, target_logits, *, reverse=False, {WEIGHTED})",
    "segment_kl_divergence_with_grad": f"(x, indptr, target_logits, *, reverse=False, {WEIGHTED}, out=None)",
    "threads": "(n)",
}
every_name = pytest.mark.parametrize("name", SIGNATURES)


def test_all_is_what_has_a_signature_here():
    assert sorted(fs.__all__) == sorted(SIGNATURES)
    assert len(set(fs.__all__)) == len(fs.__all__)


def test_all_is_what_is_there():
    """Other public names are those of modules, and of the ufuncs that have been used."""
    modules = {module.name for module in pkgutil.iter_modules(fs.__path__)}
    public = {name for name in vars(fs) if not name.startswith("_")} - modules - set(fs._ufuncs.NAMES)
    assert public == set(fs.__all__)


def test_all_is_what_the_readme_lists():
    """In both directions, by the table of functions."""
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"\| functions \|.*\n(?:\|.*\n)+", readme).group()
    listed = set()
    for line in table.rstrip().splitlines()[2:]:
        listed.update(re.findall(r"`(\w+)", line.split("|")[1]))
    assert listed == set(fs.__all__)


@every_name
def test_signatures(name):
    """Names, order, kinds and defaults."""
    signature = inspect.signature(getattr(fs, name))
    bare = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    assert str(bare) == SIGNATURES[name]


@every_name
def test_annotations(name):
    signature = inspect.signature(getattr(fs, name))
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty


def sections(text):
    """The numpydoc sections of a docstring."""
    found = re.split(r"^(\w[\w ]+)\n-{3,}\n", inspect.cleandoc(text), flags=re.MULTILINE)
    return {"Summary": found[0], **dict(zip(found[1::2], found[2::2], strict=True))}


@every_name
def test_docstrings(name):
    """Summary, all parameters, returns, errors, sources, an example (which runs as a doctest)."""
    parts = sections(getattr(fs, name).__doc__)
    first = parts["Summary"].splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 100
    required = {"Parameters", "Raises", "Examples"}
    if name != "threads":
        required |= {"Returns", "References"}
    assert required <= set(parts), required - set(parts)
    documented = re.findall(r"^(\w[\w, ]*?)(?: :.*)?$", parts["Parameters"], re.MULTILINE)
    documented = [parameter for line in documented for parameter in line.split(", ")]
    assert sorted(documented) == sorted(inspect.signature(getattr(fs, name)).parameters)
    assert ">>> " in parts["Examples"]
    assert f"fs.{name}(" in parts["Examples"]


@every_name
def test_default_axis_is_documented(name):
    """It is documented, because SciPy's default differs."""
    if name not in ("softmax", "log_softmax", "logsumexp"):
        pytest.skip("has no SciPy namesake")
    assert "SciPy's default is None" in " ".join(getattr(fs, name).__doc__.split())


def test_sources_can_be_found():
    """A reference has a DOI, an arXiv number, or names a book."""
    for name in set(SIGNATURES) - {"threads"}:
        assert re.search(r"doi:10\.\d|arXiv|section \d", sections(getattr(fs, name).__doc__)["References"]), name


def test_version():
    from importlib import metadata

    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", fs.__version__)
    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is None or declared.group(1) == fs.__version__
    try:
        installed = metadata.version("fastsoftmax")
    except metadata.PackageNotFoundError:
        return
    assert installed == fs.__version__


def test_the_package_is_typed():
    assert (child.PACKAGE / "py.typed").exists()


IMPORT = """
import sys
import fastsoftmax as fs
heavy = {"numba", "llvmlite", "scipy", "sklearn", "matplotlib", "torch", "jax", "rich"}
print(sorted(heavy & set(sys.modules)))
fs.softmax([1.0, 2.0])
print(sorted(heavy & set(sys.modules)))
"""


def test_import_is_light(tmp_path):
    """The import does not import Numba. A call does if it compiles a kernel, not if it finds one on disk."""
    options = {"FASTSOFTMAX_PREBUILT": 0, "FASTSOFTMAX_CACHE_DIR": tmp_path}
    (before, compiled), (again, found) = (child.run(IMPORT, **options).splitlines() for _ in range(2))
    assert before == again == "[]"
    assert "numba" in compiled
    assert found == "['llvmlite']"


def test_kernels_are_attributes():
    """By their names only."""
    from fastsoftmax import kernels

    assert kernels.activations.__name__ == "fastsoftmax.kernels.activations"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kernels.nonsense
