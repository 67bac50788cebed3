"""From kernels to machine code.

`entry`
    Kernels as Python calls them, and their variants. It does not import Numba.
`frontend`
    The LLVM code of a variant, and Numba's options.
`translate`
    Writes this code by a walk through the kernel: `syntax` has the trees of functions, `values` what is computed,
    `lowering` the operations on vectors.
`wrappers`
    The functions around it, through which Python and C call it.
`targets`
    The processors that it is compiled for, and LLVM's passes.
`library`
    All variants in one shared library, made before they are called; `runtime.prebuilt` loads it.
`jit`
    One variant, compiled when it is called, where no library has it.
`external`
    Kernels in a user's own code that Numba compiles.
"""
