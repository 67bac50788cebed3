"""Vectors as values: the few SIMD operations that the kernels are written in.

Numba has no vector type, and LLVM's loop vectoriser gives up on the loops that matter here: a maximum, a
compensated sum, an in-place pass, a row of ten. `lowering.Lanes` closes the gap. It is a Numba type that is an
LLVM vector of 64 bytes (16 float32 or 8 float64), with ``+ - * /`` and the operations below. A kernel written with
it is vectorised as it stands, on every machine, and its tails are masked instead of scalar.

Each operation's Python body is its meaning on NumPy arrays. It runs under ``NUMBA_DISABLE_JIT=1``, where a vector
is an array of 16 or 8 numbers that a debugger can show. `lowering` says how the LLVM code is attached.

`values`: every lane alike; these take floats too
    muladd            a b + c, fused where the machine fuses
    fma               a b + c, rounded once on every machine
    maximum           the greater; b where a is NaN
    minimum           the lesser; b where a is NaN
    select_less       x if a < b else y
    select_equal      x if a == b else y
    select_other      y if a < b or c == d else x
    any_above         whether any lane is greater than a float
    absolute          without the sign
    truncate          without the fraction
    nearest           the nearest whole number
    shift_to_exponent the low bits as an exponent: a power of two
    split_exponent    k and m with a = 2**k m
    is_single         whether it is float32, known when compiling
    number            a constant in the dtype of something
    filled            a constant in the form of something
    broadcast         a float in every lane
    lane              one lane
    unless_none       a value, or None if an option is None
    if_none           a value, or None unless an option is None

`memory`: arrays by flat offset
    memory            what a building block gets of an array
    after             the memory from an offset on
    size              how many numbers
    lane_count        how many of them a vector holds
    item_size         how many bytes each takes
    address           where the first one lies
    load              a whole vector
    store             a whole vector
    store_past        a whole vector, past the caches
    fence             what was stored past the caches is there for other threads
    lanes_to_line     how many numbers to the next cache line
    prefetch          ask for a cache line that will be read
    prefetch_written  ask for a cache line that will be written
    load_scalar       one number
    store_scalar      one number
    load_part         the first lanes of a vector
    store_part        the first lanes of a vector
    gather            the first lanes, from places a stride apart
    scatter           the first lanes, to places a stride apart
    load_double       eight numbers as float64
    scratch           vectors on the stack
    integers          64-bit integers on the stack

`transpose`: rows into columns, and back
    load_turned       a square of whole rows' parts
    store_turned      the way back
    load_dense        rows of a few classes that follow each other
    store_dense       the way back

`reduce`: lanes into one
    fold_maximum      the greatest lane
    fold_sum          the sum of the lanes
    fold_two_sum      the sum of the lanes of pairs, as a pair

`rows`: what belongs to the rows and classes of a block
    row_value         one number for each row, or 1
    class_value       one number for each class, or 1
    one_hot           1 at the label of the row
    lane_labels       the labels as floats
    gather_rows       element k of the row of each lane, rows of unequal length
    scatter_rows      the way back
    neighbours        starts and lengths of the next rows

`ufunc`: the loops that C calls
    item              an entry of the arguments
    memory_at         the memory at an address
    singles           memory of float32 that is not there, for `scratch`
    read              numbers a stride apart; float16 as float32
    write             the way back
    call_loop         call another such loop
    float_status      the floating-point exceptions so far
    set_float_status  set them
"""
