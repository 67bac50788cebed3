"""Random classes, drawn from logits, and the filters that language models put before the draw."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastsoftmax.arrays.blocks import LAST, NO_ROOM, SHORT_WAY, UNTEMPERED, Parted, Problem, inverse_temperature
from fastsoftmax.arrays.lazy import backend_for
from fastsoftmax.arrays.parts import parts, run
from fastsoftmax.arrays.sampling import (
    NO_SEGMENTS,
    Draws,
    draw_arguments,
    draw_from_long_row,
    draws_work,
    filters_of,
    fresh_generator,
    room_for,
    row_at,
)
from fastsoftmax.arrays.threads import run_code
from fastsoftmax.machine.entry import entry, remember

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsoftmax._types import Arrays, ArrayT, FloatT, Numbers, Other, Vector


# Small calls, as in `activations`.
_SMALL: dict[np.dtype[Any], Any] = {}


def _small(x: Any, rng: Any) -> Any:
    """One class for each row of a small array, None if the arguments do not fit."""
    kernel = _SMALL.get(x.dtype)
    if kernel is None or not 0 < x.size <= SHORT_WAY or x.ndim not in (1, 2) or not x.flags.carray:
        return None
    if rng is None:
        rng = fresh_generator()
    elif type(rng) is not np.random.Generator:
        return None
    rows = x.size // x.shape[-1]
    chosen = np.empty(rows, np.int64)
    block = x if x.ndim == 2 else x.reshape(1, -1)
    numbers = rng.random(rows)
    if kernel(0, rows, NO_ROOM[x.dtype], block, numbers, chosen, None):
        return categorical(x, uniforms=numbers.reshape(x.shape[:-1]))  # the error, with its position
    return chosen if x.ndim == 2 else chosen[0]


# By dtype, and whether there is a temperature.
_SMALL_DRAWS: dict[tuple[np.dtype[Any], bool], Any] = {}


def _small_draws(x: Any, rng: Any, temperature: float, top_k: Any, top_p: Any, min_p: Any) -> Any:
    """As `_small`, with filters, and maybe a temperature."""
    if not 0 < x.size <= SHORT_WAY or x.ndim not in (1, 2) or not x.flags.carray or x.dtype not in NO_ROOM:
        return None
    if rng is not None and type(rng) is not np.random.Generator:
        return None
    beta = inverse_temperature("categorical", temperature, x.dtype)
    code = _SMALL_DRAWS.get((x.dtype, beta is None))
    if code is None:
        return None
    filters = filters_of("categorical", top_k, top_p, min_p, temperature)
    classes = x.shape[-1]
    rows = x.size // classes
    numbers, chosen = (fresh_generator() if rng is None else rng).random(rows), np.empty(rows, np.int64)
    room = room_for(x.dtype, classes, filters.any)
    given = draw_arguments(classes, rows, numbers, chosen, filters, beta)
    arguments = (NO_SEGMENTS, NO_SEGMENTS, x.reshape(-1), *given)
    run_code(code, rows, draws_work(x.size, rows, filters) * x.itemsize // 4, room(), room, arguments)
    if chosen.min() < 0:
        return categorical(  # the error, with its position
            x,
            uniforms=numbers.reshape(x.shape[:-1]),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        )
    return chosen if x.ndim == 2 else chosen[0]


def _draw(draws: Draws, block: Any, numbers: Any, chosen: Any) -> None:
    """Draw from the rows of a block (rows, classes, 1), with flat uniform numbers and memory for the classes."""
    rows, classes, _ = block.shape
    pieces, work, room = draws.pieces(classes), draws.work(block.size), draws.room(block.dtype, classes)
    kernel, given = entry("sampling.draws"), draws.arguments(classes, rows, pieces, numbers, chosen)
    arguments = (NO_SEGMENTS, NO_SEGMENTS, block.reshape(-1), *given)
    run(kernel, rows * pieces, work, room, *arguments)
    remember(_SMALL_DRAWS, (block.dtype, draws.beta is None), kernel, 0, 0, NO_ROOM[block.dtype], *arguments)


def _draw_in_turn(blocks: Iterable[Any], numbers: Any, chosen: Any, draw: Callable[[Any, Any, Any], None]) -> None:
    """Draw from blocks of rows, one after the other; the uniform numbers and the classes of a row are columns."""
    first = 0
    for block in blocks:
        some = slice(first, first + len(block))
        drawn = np.empty((len(numbers), len(block)), np.int64)
        draw(block, np.ascontiguousarray(numbers[:, some]).reshape(-1), drawn.reshape(-1))
        chosen[:, some], first = drawn, some.stop


if TYPE_CHECKING:

    @overload
    def categorical(  # type: ignore[overload-overlap]  # one row gives a scalar
        logits: Vector[Any],
        axis: int = -1,
        *,
        rng: Any = None,
        uniforms: Arrays | None = None,
        size: None = None,
        replace: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        where: Arrays | None = None,
    ) -> np.int64: ...

    @overload
    def categorical(
        logits: NDArray[Any] | Numbers | Other,
        axis: int = -1,
        *,
        rng: Any = None,
        uniforms: Arrays | None = None,
        size: int | tuple[int, ...] | None = None,
        replace: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        where: Arrays | None = None,
    ) -> NDArray[np.int64]: ...

    @overload
    def categorical(
        logits: ArrayT,
        axis: int | str = -1,
        *,
        rng: Any = None,
        uniforms: Arrays | None = None,
        size: int | tuple[int, ...] | None = None,
        replace: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        where: Arrays | None = None,
    ) -> ArrayT: ...


def categorical(
    logits: Any,
    axis: int | str = LAST,
    *,
    rng: Any = None,
    uniforms: Any = None,
    size: Any = None,
    replace: bool = True,
    temperature: float = UNTEMPERED,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    where: Any = None,
) -> Any:
    r"""Random classes, drawn with the probabilities of the softmax of each row.

    .. math:: \Pr(k) = \frac{\exp(x_k / T)}{\sum_j \exp(x_j / T)}

    Class k is drawn where :math:`c_{k-1} \le u \, c_{K-1} < c_k`, for the sums :math:`c_k` of the terms
    :math:`\exp(x_j / T)` up to class k, and a uniform number u.

    Parameters
    ----------
    logits : array_like
        Logits, of any shape with at least one axis: float16, float32, float64, integers or bools.
    axis : int, default -1
        The axis of the classes.
    rng : None, int, array_like of ints, SeedSequence, BitGenerator or Generator, optional
        What the uniform numbers come from: a `numpy.random.Generator`, or what `numpy.random.default_rng` takes as
        a seed. None is a generator with a seed of the operating system.
    uniforms : array_like, optional
        The uniform numbers themselves, of the shape of the result, 0 <= u < 1. They exclude `rng`.
    size : int or tuple of int, optional
        How many classes are drawn from each row, as the shape of the first axes of the result. None draws one.
    replace : bool, default True
        Whether a class may be drawn several times. If not, each draw leaves its class out for those after it.
    temperature : float, default 1.0
        T > 0.
    top_k : int, optional
        Keep the `top_k` greatest logits only, at least 1.
    top_p : float, optional
        Of these, keep the smallest set of greatest logits with at least this probability together; in (0, 1].
    min_p : float, optional
        Of these, keep the classes with at least `min_p` times the probability of the most probable one; in (0, 1].
    where : array_like of bool, optional
        True where a class takes part. It must broadcast to the shape of `logits`.

    Returns
    -------
    ndarray of int64 or int64
        Classes, of shape `size` followed by the shape of `logits` without `axis`.

    Raises
    ------
    ValueError
        For a row that holds NaN or +inf, or has fewer classes of positive probability than are drawn (the message
        names the first such row), for `uniforms` outside [0, 1) or of another shape, for both `rng` and
        `uniforms`, and for unfit values of the other options.
    TypeError
        For complex, object and string logits, masked arrays, and options of a wrong type.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    filter_logits : the logits that the filters keep.
    segment_categorical : for rows of unequal length.
    softmax : the probabilities.

    Notes
    -----
    One uniform number of 53 bits is used for each draw, in C order of the result, also for float32 logits, and the
    sums are float64: a class of probability 1e-12 is drawn at that rate. The probability with which the code draws
    a class is within 2e-6 of the formula, relatively, where it is above 1e-9. The class is a monotone function of
    u. A class of probability 0 is never drawn. The result depends neither on other rows nor on the number of
    threads.

    The filters are applied in the order temperature, `top_k`, `top_p`, `min_p`. Of equal logits, those with the
    lowest index are kept first. Nothing is sorted. With ``replace=False`` the distribution is that of successive
    draws, each from the classes that are left (the Gumbel-top-k trick has the same).

    References
    ----------
    L. Devroye, Non-Uniform Random Variate Generation, 1986, section 2.1 of chapter III (inversion by sequential
    search).
    A. Holtzman et al., The curious case of neural text degeneration, 2020, arXiv:1904.09751 (`top_p`).
    N. N. Minh et al., Turning up the heat: min-p sampling for creative and coherent LLM outputs, 2024,
    arXiv:2407.01082 (`min_p`).
    W. Kool, H. van Hoof, M. Welling, Stochastic beams and where to find them, 2019, arXiv:1903.06059
    (draws without replacement).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.0001, 0.8999]])
    >>> fs.categorical(logits, uniforms=[0.6, 0.6])
    array([1, 2])
    >>> classes = fs.categorical(logits, rng=np.random.default_rng(0), size=100_000)
    >>> classes.shape
    (100000, 2)
    >>> np.bincount(classes[:, 0]) / 100_000
    array([0.50234, 0.24951, 0.24815])

    The next word of a language model, and three different classes of each row:

    >>> fs.categorical(logits, rng=0, temperature=0.7, top_k=40, top_p=0.95)
    array([1, 2])
    >>> fs.categorical(logits, rng=0, size=3, replace=False).T
    array([[1, 0, 2],
           [2, 0, 1]])
    """
    if (
        axis is LAST
        and uniforms is None
        and size is None
        and replace is True
        and where is None
        and type(logits) is np.ndarray
    ):
        small = None
        if top_k is not None or top_p is not None or min_p is not None:
            small = _small_draws(logits, rng, temperature, top_k, top_p, min_p)
        elif temperature is UNTEMPERED:
            small = _small(logits, rng)
        if small is not None:
            return small
    function = "categorical"
    options: dict[str, Any] = {
        "rng": rng,
        "uniforms": uniforms,
        "size": size,
        "replace": replace,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    if backend := backend_for(logits, uniforms, where):
        return backend(function, logits, axis=axis, out=None, where=where, **options)
    problem = Problem(function, logits, axis, name="logits")
    problem.mask(where)
    draws = Draws(function, problem.row_shape, problem.dtype, **options)
    draws.check_count(problem.classes)
    if not draws.plain:
        problem = Problem(function, problem.x, axis, name="logits", last=True)
        problem.mask(where)
    source = problem.block()
    numbers, chosen, result = draws.in_order(problem.row_order())
    rows = problem.rows
    columns = numbers.reshape(-1, max(rows, 1)), chosen.reshape(-1, max(rows, 1))
    if draws.shares_rows(problem):
        each = (row[np.newaxis] for block in parts(source) for row in block)
        _draw_in_turn(
            each, *columns, lambda row, some, drawn: draw_from_long_row(row.reshape(-1), some, drawn, draws.beta)
        )
    elif draws.plain:
        kernel, arguments = entry("sampling.categorical"), (source, numbers, chosen, draws.beta)
        run(kernel, rows, draws.work(source.size), problem.room(1), *arguments)
        if problem.direct and draws.beta is None:
            remember(_SMALL, problem.dtype, kernel, 0, 0, NO_ROOM[problem.dtype], *arguments)
    elif numbers.size:
        if isinstance(source, Parted):
            _draw_in_turn(parts(source), *columns, partial(_draw, draws))
        else:
            _draw(draws, source, numbers, chosen)
    return draws.finish(result, lambda index: row_at(problem, index))


if TYPE_CHECKING:

    @overload
    def filter_logits(
        logits: NDArray[FloatT],
        axis: int = -1,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        temperature: float = 1.0,
        out: NDArray[FloatT] | None = None,
    ) -> NDArray[FloatT]: ...

    @overload
    def filter_logits(
        logits: ArrayT,
        axis: int | str = -1,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        temperature: float = 1.0,
        out: ArrayT | None = None,
    ) -> ArrayT: ...

    @overload
    def filter_logits(
        logits: Numbers,
        axis: int = -1,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        temperature: float = 1.0,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def filter_logits(
        logits: Other,
        axis: int = -1,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        temperature: float = 1.0,
        out: Any = None,
    ) -> Any: ...


def filter_logits(
    logits: Any,
    axis: int | str = -1,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    temperature: float = 1.0,
    out: Any = None,
) -> Any:
    r"""Logits with -inf for the classes that top-k, top-p and min-p leave out.

    `top_k` keeps the greatest logits, as many as it says. Of these, `top_p` keeps the smallest set of greatest
    logits with :math:`\sum p_k \ge` `top_p`, where p is the softmax of what `top_k` has kept, over T. Of these,
    `min_p` keeps the classes with :math:`p_k \ge` `min_p` :math:`\max_j p_j`.

    Parameters
    ----------
    logits : array_like
        Logits, of any shape with at least one axis. float32 and float64 are kept; float16 and
        ``ml_dtypes.bfloat16`` are computed in float32 and returned in their dtype; integers and bools become
        float64.
    axis : int, default -1
        The axis of the classes.
    top_k : int, optional
        At least 1. All classes are kept if there are fewer.
    top_p, min_p : float, optional
        In (0, 1].
    temperature : float, default 1.0
        T > 0. It matters for `top_p` and `min_p`; the logits that are kept are not divided by it.
    out : ndarray, optional
        Where to put the result: of its shape and dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        Of the shape of `logits`: the logit where a class is kept, else -inf.

    Raises
    ------
    ValueError
        For `top_k` below 1, `top_p` or `min_p` outside of (0, 1], a temperature that is not positive, and an unfit
        `out`.
    TypeError
        For complex, object and string logits, masked arrays, and options of a wrong type.
    numpy.exceptions.AxisError
        For an axis that `logits` does not have.

    See Also
    --------
    categorical : draws from these logits at once, with the same options.

    Notes
    -----
    Of equal logits, those with the lowest index are kept first. At least one class of a row is kept. A row with
    NaN or +inf becomes NaN; one with nothing but -inf stays. Nothing is sorted: `top_k` and `top_p` are found by
    selection, and only stretches of 256 classes whose greatest logit is large enough are looked through.

    The sums of `top_p` are those of terms in the dtype of the computation. If the set with one class less has
    `top_p` of the probability to within 1e-6 (float32) or 1e-14 (float64), either is kept.

    References
    ----------
    A. Fan, M. Lewis, Y. Dauphin, Hierarchical neural story generation, 2018, arXiv:1805.04833 (`top_k`).
    A. Holtzman et al., The curious case of neural text degeneration, 2020, arXiv:1904.09751 (`top_p`).
    N. N. Minh et al., Turning up the heat: min-p sampling for creative and coherent LLM outputs, 2024,
    arXiv:2407.01082 (`min_p`).

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> logits = np.log([0.5, 0.3, 0.15, 0.05])
    >>> np.exp(fs.filter_logits(logits, top_k=3))
    array([0.5 , 0.3 , 0.15, 0.  ])
    >>> np.exp(fs.filter_logits(logits, top_p=0.7))
    array([0.5, 0.3, 0. , 0. ])
    >>> np.exp(fs.filter_logits(logits, min_p=0.2))
    array([0.5 , 0.3 , 0.15, 0.  ])
    """
    function = "filter_logits"
    options: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
    if backend := backend_for(logits):
        return backend(function, logits, axis=axis, out=out, **options)
    problem = Problem(function, logits, axis, name="logits", last=True)
    beta = inverse_temperature(function, temperature, problem.dtype)
    filters = filters_of(function, top_k, top_p, min_p, temperature)
    output = problem.output(out)
    source = problem.block()
    arguments = (source, output.block, filters.top_k, filters.levels, beta)
    room = room_for(problem.dtype, problem.classes, True)
    run(entry("sampling.filter_logits"), problem.rows, 10 * source.size, room, *arguments, whole=(filters.levels,))
    return output.finish()
