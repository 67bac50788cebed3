"""SIMD vectors as values, and the operations that the kernels are written with.

Numba has no vector type, and LLVM's loop vectoriser gives up on the loops that matter here: a maximum, a
compensated sum, an in-place pass, a row of ten. So `machine.lowering.Lanes` is a Numba type for an LLVM vector of
64 bytes (16 float32 or 8 float64), with ``+ - * /`` and the operations below. A kernel written with it is
vectorised on every machine, whatever the optimiser does, and the ends of rows are masked vectors instead of scalar
loops.

Each operation's Python body is its meaning on NumPy arrays. It runs under ``NUMBA_DISABLE_JIT=1``, where a vector
is an array of 16 or 8 numbers that a debugger can show. `machine.lowering` explains how the LLVM code is attached.

`values`: operations on each lane; they take floats, too
    muladd            a b + c, fused where the machine fuses
    fma               a b + c, rounded once on every machine
    maximum           the greater; b where a is NaN
    minimum           the lesser; b where a is NaN
    select_less       x if a < b else y
    zero_if_less      0 if a < b else x
    select_equal      x if a == b else y
    select_negative   x if the sign of a is negative
    count_equal       whole numbers plus 1 where a == b
    counted           these whole numbers as floats
    any_above         whether any lane is greater than a float
    lanes_above       the lanes greater than a float, as bits
    lowest_bit        the place of the lowest bit
    absolute          the absolute value
    truncate          rounded towards zero
    nearest           the nearest whole number
    shift_to_exponent the low bits as an exponent: a power of two
    split_exponent    k and m with a = 2**k m
    is_single         whether a value is float32, known when compiling
    number            a constant in the dtype of an operand
    filled            a constant in the dtype and shape of an operand
    broadcast         a float in every lane
    last_lanes        the last lanes, and a constant in the others
    lane              one lane
    unless_none       a value, or None if an option is None
    if_none           a value, or None if an option is not None

`memory`: arrays by flat offset
    memory            an array as building blocks take it
    after             the memory from an offset on
    size              the number of items
    lane_count        the number of items in a vector
    item_size         the number of bytes of an item
    address           the address of the first item
    load              read a whole vector
    store             write a whole vector
    store_past        write a whole vector past the caches
    fence             make vectors stored past the caches visible to other threads
    lanes_to_line     the number of items before the next cache line
    prefetch          prefetch a cache line that will be read
    prefetch_second   the same, into the second cache only
    prefetch_written  prefetch a cache line that will be written
    load_scalar       read one number
    store_scalar      write one number
    load_part         read the first lanes of a vector
    store_part        write the first lanes of a vector
    store_whole       write the first lanes as integers
    gather            read the first lanes from places a stride apart
    scatter           write the first lanes to places a stride apart
    load_double       read eight numbers as float64
    scratch           vectors on the stack
    integers          64-bit integers on the stack
    as_integers       memory of floats as 64-bit integers
    as_doubles        memory of floats as float64

`transpose`: rows into columns, and back
    load_turned       a vector's lanes of classes, of as many rows
    store_turned      the inverse
    load_dense        consecutive rows of a few classes
    store_dense       the inverse

`reduce`: lanes into one
    fold_maximum      the greatest lane
    fold_sum          the sum of the lanes
    fold_two_sum      the sum of the lanes of pairs, as a pair
    doubled           the lanes as eight float64; 16 are added in pairs

`rows`: weights and labels of the rows and classes of a block, and ragged rows
    row_value         one number for each row, or 1
    class_value       one number for each class, or 1
    one_hot           1 at the label of the row
    lane_labels       the labels as floats
    gather_rows       element k of the row of each lane, rows of unequal length
    scatter_rows      the inverse
    neighbours        starts and lengths of the next rows

`ufunc`: operations for loops that C calls
    item              an entry of the loop's arguments
    memory_at         the memory at an address
    singles           empty memory of float32, for `scratch`
    read              numbers a stride apart; float16 as float32
    write             the inverse
    read_bfloat16     numbers a stride apart; bfloat16 as float32
    write_bfloat16    the inverse
    call_loop         call another such loop
    float_status      read the floating-point exceptions
    set_float_status  set them
"""
