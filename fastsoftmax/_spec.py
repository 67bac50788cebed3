"""The table of public functions. Every other list of functions is made from it.

The overloads for compiled code, Dask's dispatch, ``fastsoftmax run``, ``fastsoftmax warmup``, the list of the
benchmarks, the tables of the tests, the pages of the reference and README's table of functions follow from this
table. Parameters and defaults are read from the public signatures (`inspect.signature`) and not repeated here.
This module imports nothing of the package.

The words of the table:

family
    Functions of one family share a driver and differ only in their kernels.
operands
    The roles of the positional arrays: ``logits``; ``tangent`` and ``cotangent``, of the shape of the logits;
    ``labels`` (one class index for each row); ``distributions`` (of the shape of the logits); ``targets`` (labels
    or distributions); ``target_logits`` (the logits of such distributions); ``probabilities`` (one number from 0
    to 1 for each logit); ``indptr``; and ``positions`` (labels counted from the beginning of a segment). Functions
    of products have ``features`` and ``weight`` instead of logits.
result
    ``like``: of the shape of the logits. ``rows``: one number for each row. ``square``: a K x K matrix for each
    row. ``loss``: one number for each row, or one number in all, as ``reduction=`` says. ``gradients``: a named
    tuple, with a gradient for each argument. ``classes``: one class index for each row, or several of them, as
    ``size=`` says. ``entries``: one number for each logit, or one number in all, as ``reduction=`` says. ``fit``:
    a named tuple of numbers that were fitted to all rows. Several entries are a tuple.
"""

from typing import NamedTuple

LIKE, ROWS, SQUARE, LOSS, GRADIENTS, CLASSES = "like", "rows", "square", "loss", "gradients", "classes"
ENTRIES, PROBABILITIES = "entries", "probabilities"
FIT = "fit"
LOGITS, TANGENT, COTANGENT = "logits", "tangent", "cotangent"
TARGETS, LABELS, DISTRIBUTIONS, TARGET_LOGITS = "targets", "labels", "distributions", "target_logits"
INDPTR, POSITIONS = "indptr", "positions"
FEATURES, WEIGHT = "features", "weight"


class Group(NamedTuple):
    """Functions that share a page of the reference and a line of README's table."""

    title: str
    page: str
    text: str


class Function(NamedTuple):
    """One public function.

    `module` is the module of ``fastsoftmax.api`` that holds it, `kernel` the function of ``fastsoftmax.kernels``
    that computes it ("module.function"). `loss` names the loss whose gradient or second derivative it is. `pieces`
    says whether Dask computes rows that are split over several chunks without joining the chunks. `bench` lists
    the variants that the benchmarks time: "" is the plain call, other entries say what is different.
    """

    name: str
    group: str
    module: str
    family: str
    operands: tuple[str, ...]
    result: tuple[str, ...]
    kernel: str
    loss: str = ""
    pieces: bool = False
    bench: tuple[str, ...] = ()

    @property
    def second(self) -> str:
        """The name of the second array of losses and statistics."""
        if TARGET_LOGITS in self.operands:
            return TARGET_LOGITS
        labels = self.family in ("statistics", "focal", "focal curvature")
        return "labels" if labels else "targets"

    @property
    def is_ragged(self) -> bool:
        """Whether its rows are segments of a vector."""
        return INDPTR in self.operands

    @property
    def is_elementwise(self) -> bool:
        """Whether it takes single logits, which have no axis of classes."""
        return PROBABILITIES in self.operands

    @property
    def of_products(self) -> bool:
        """Whether it takes features and weights instead of logits: then it needs BLAS, and weights in memory."""
        return FEATURES in self.operands

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code has it, which gains nothing where BLAS or many passes take the time."""
        return not (self.of_products or FIT in self.result)

    @property
    def command(self) -> str | None:
        """Its name for ``fastsoftmax run``; None for what that does not compute; gradients are options there."""
        if self.is_ragged or self.result == (GRADIENTS,):
            return None
        return None if self.name.endswith("_grad") else self.name.replace("_", "-")


GROUPS = {
    "activations": Group(
        "Softmax", "softmax", "with `where=`, any axis, several axes or all; the first two with `temperature=`"
    ),
    "derivatives": Group(
        "Derivatives",
        "softmax",
        "Jacobians, and products with them in O(K), with `temperature=`; those of `softmax` also from given "
        "probabilities (`from_probs=True`)",
    ),
    "entropy": Group("Entropy", "softmax", "the entropy of each row, and its gradient, with `temperature=`"),
    "cross-entropy": Group(
        "Cross-entropy",
        "losses",
        "for class indices of any integer dtype, or a distribution for each row, with `class_weight=`, "
        "`sample_weight=`, `ignore_index=`, `label_smoothing=`, `z_loss=`, `softcap=`, `reduction=`; first and "
        "second derivatives",
    ),
    "focal loss": Group(
        "Focal loss",
        "losses",
        "the cross-entropy with less weight for rows that are predicted well, with `gamma=`, `class_weight=`, "
        "`sample_weight=`, `ignore_index=`, `reduction=`; first and second derivatives",
    ),
    "binary": Group(
        "Binary losses",
        "losses",
        "of single logits, against targets from 0 to 1, of any shape: cross-entropy with `pos_weight=` and "
        "`label_smoothing=`, focal loss with `gamma=` and `alpha=`; `sample_weight=`, `reduction=`; first and "
        "second derivatives",
    ),
    "statistics": Group(
        "Statistics",
        "losses",
        "log-probability and rank of the label, greatest class, entropy and log-sum-exp of each row, in one pass",
    ),
    "calibration": Group(
        "Calibration",
        "losses",
        "the temperature that minimises the cross-entropy, with `sample_weight=` and `ignore_index=`",
    ),
    "squared error": Group(
        "Squared error",
        "losses",
        "half the squared distance of the probabilities from the targets, with `sample_weight=` and `reduction=`",
    ),
    "divergences": Group(
        "Divergences",
        "losses",
        "Kullback-Leibler and Jensen-Shannon divergences of two arrays of logits, with `temperature=`, `reverse=` "
        "or `beta=`, `sample_weight=`, `reduction=`, and their gradients",
    ),
    "linear": Group(
        "Linear cross-entropy",
        "losses",
        "of `features @ weight.T + bias`, without ever holding these logits, and its gradients; options of "
        "`cross_entropy`",
    ),
    "sampling": Group(
        "Sampling",
        "sampling",
        "random classes from logits, with `rng=` or `uniforms=`, `size=`, `replace=`, and the filters of language "
        "models: `temperature=`, `top_k=`, `top_p=`, `min_p=`",
    ),
    "segments": Group("Ragged rows", "segments", "of rows of unequal length, in CSR form"),
}

_X = (LOGITS,)
_FORWARD = ("activations", "activations", "forward", _X, (LIKE,))
_JACOBIAN = ("derivatives", "derivatives", "jacobian", _X, (SQUARE,))
_PRODUCT = ("derivatives", "derivatives", "product")
_JVP, _VJP = (*_PRODUCT, (LOGITS, TANGENT), (LIKE,)), (*_PRODUCT, (LOGITS, COTANGENT), (LIKE,))
_LINEAR = ("linear", "linear", "linear", (FEATURES, WEIGHT, LABELS))
_DIVERGENCE = ("divergences", "divergence", TARGET_LOGITS, False)
_PRODUCT_KERNEL = "derivatives.softmax_product"
_RAGGED = ("segments", "segments")
_OUT = ("", "out=")


def _loss(
    name: str,
    group: str,
    family: str,
    targets: str,
    pieces: bool,
    bench: tuple[str, ...] = (),
    module: str = "losses",
) -> tuple[Function, ...]:
    """A loss, its gradient, and both in one pass."""
    entry = (group, module, family, (LOGITS, targets))
    kernel = f"{module}.{name}"
    return (
        Function(name, *entry, (LOSS,), kernel, name, pieces, bench[:1]),
        Function(f"{name}_grad", *entry, (LIKE,), kernel, name, pieces),
        Function(f"{name}_with_grad", *entry, (LOSS, LIKE), kernel, name, pieces, bench),
    )


def _binary(name: str, family: str, kernel: str, bench: tuple[str, ...]) -> tuple[Function, ...]:
    """A loss of single logits, its gradient, both in one pass, and its second derivative."""
    entry = ("binary", "binary", family, (LOGITS, PROBABILITIES))
    return (
        Function(name, *entry, (ENTRIES,), kernel, name, bench=bench[:1]),
        Function(f"{name}_grad", *entry, (LIKE,), kernel, name),
        Function(f"{name}_with_grad", *entry, (ENTRIES, LIKE), kernel, name, bench=bench),
        Function(f"{name}_hessian_diag", *entry, (LIKE,), kernel, name),
    )


def _curvature(name: str, kernel: str, *operands: str, result: str = LIKE) -> Function:
    """A function of the second derivative of the cross-entropy."""
    entry = ("cross-entropy", "losses", "curvature", (LOGITS, TARGETS, *operands), (result,))
    return Function(name, *entry, f"derivatives.{kernel}", "cross_entropy", pieces=result == LIKE)


def _ragged(name: str, operands: tuple[str, ...], result: tuple[str, ...], loss: str = "") -> Function:
    """A function of segments. `kernel` is the kernel for segments that are not huge."""
    kernel = name.removesuffix("_with_grad").replace("_jvp", "_product").replace("_vjp", "_product")
    return Function(name, *_RAGGED, "segments", (LOGITS, INDPTR, *operands), result, f"segments.{kernel}", loss)


FUNCTIONS = {
    function.name: function
    for function in (
        Function("softmax", *_FORWARD, "activations.softmax", pieces=True, bench=_OUT),
        Function("log_softmax", *_FORWARD, "activations.log_softmax", pieces=True, bench=_OUT),
        Function("logsumexp", *_FORWARD[:4], (ROWS,), "activations.logsumexp", pieces=True, bench=("",)),
        Function("softmax_jacobian", *_JACOBIAN, "derivatives.softmax_jacobian", bench=_OUT),
        Function("softmax_jvp", *_JVP, "derivatives.softmax_product", pieces=True, bench=("", "of probs, out=")),
        Function("softmax_vjp", *_VJP, "derivatives.softmax_product", pieces=True, bench=("",)),
        Function("log_softmax_jacobian", *_JACOBIAN, "derivatives.log_softmax_jacobian"),
        Function("log_softmax_jvp", *_JVP, "derivatives.log_softmax_jvp", pieces=True),
        Function("log_softmax_vjp", *_VJP, "derivatives.log_softmax_vjp", pieces=True),
        Function("softmax_entropy", "entropy", "entropy", "entropy", _X, (ROWS,), "entropy.entropy", bench=("",)),
        Function(
            "softmax_entropy_with_grad", "entropy", "entropy", "entropy", _X, (ROWS, LIKE), "entropy.entropy"
        ),
        *_loss("cross_entropy", "cross-entropy", "cross entropy", TARGETS, pieces=True, bench=_OUT),
        _curvature("cross_entropy_hvp", "softmax_product", TANGENT),
        _curvature("cross_entropy_hessian_diag", "softmax_variance"),
        _curvature("cross_entropy_hessian", "softmax_jacobian", result=SQUARE),
        Function(
            "label_statistics",
            "statistics",
            "statistics",
            "statistics",
            (LOGITS, LABELS),
            (ROWS,) * 5,
            "statistics.label_statistics",
            bench=("",),
        ),
        *(
            entry._replace(module="focal", kernel="focal.focal_loss")
            for entry in _loss("focal_loss", "focal loss", "focal", LABELS, pieces=False, bench=_OUT)
        ),
        Function(
            "focal_loss_hessian_diag",
            "focal loss",
            "focal",
            "focal curvature",
            (LOGITS, LABELS),
            (LIKE,),
            "focal.focal_variance",
            "focal_loss",
        ),
        *_binary("binary_cross_entropy", "binary entropy", "binary.cross_entropy", _OUT),
        *_binary("binary_focal_loss", "binary focal", "binary.focal", ("",)),
        Function(
            "fit_temperature",
            "calibration",
            "calibration",
            "fit",
            (LOGITS, LABELS),
            (FIT,),
            "metrics.derivatives",
        ),
        *_loss("squared_error", "squared error", "row loss", DISTRIBUTIONS, pieces=True),
        *_loss("kl_divergence", *_DIVERGENCE, bench=_OUT, module="divergences"),
        *_loss("js_divergence", *_DIVERGENCE, bench=("",), module="divergences"),
        Function("linear_cross_entropy", *_LINEAR, (LOSS,), "losses.cross_entropy"),
        Function("linear_cross_entropy_with_grad", *_LINEAR, (LOSS, GRADIENTS), "losses.cross_entropy"),
        Function("linear_cross_entropy_hvp", *_LINEAR[:3], (*_LINEAR[3], TANGENT), (GRADIENTS,), _PRODUCT_KERNEL),
        Function("linear_softmax_statistics", *_LINEAR, (ROWS,) * 5, "statistics.label_statistics"),
        Function(
            "categorical",
            "sampling",
            "sampling",
            "draws",
            _X,
            (CLASSES,),
            "sampling.categorical",
            bench=("", "top_p", "top_k, top_p"),
        ),
        Function("filter_logits", "sampling", "sampling", "filters", _X, (LIKE,), "sampling.filter_logits"),
        _ragged("segment_softmax", (), (LIKE,)),
        _ragged("segment_log_softmax", (), (LIKE,)),
        _ragged("segment_logsumexp", (), (ROWS,)),
        _ragged("segment_softmax_jvp", (TANGENT,), (LIKE,)),
        _ragged("segment_softmax_vjp", (COTANGENT,), (LIKE,)),
        _ragged("segment_cross_entropy", (POSITIONS,), (LOSS,), "segment_cross_entropy"),
        _ragged("segment_cross_entropy_with_grad", (POSITIONS,), (LOSS, LIKE), "segment_cross_entropy"),
        _ragged("segment_softmax_entropy", (), (ROWS,)),
        _ragged("segment_softmax_entropy_with_grad", (), (ROWS, LIKE)),
        _ragged("segment_kl_divergence", (TARGET_LOGITS,), (LOSS,), "segment_kl_divergence"),
        _ragged("segment_kl_divergence_with_grad", (TARGET_LOGITS,), (LOSS, LIKE), "segment_kl_divergence"),
        Function(
            "segment_categorical",
            *_RAGGED,
            "ragged draws",
            (LOGITS, INDPTR),
            (CLASSES,),
            "sampling.draws",
        ),
    )
}
"""{name: `Function`}, in the order of the documentation."""
