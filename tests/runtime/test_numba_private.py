"""Every use of Numba's private interface, in a process whose Numba lacks it: results are right all the same."""

import ast
import os
import re
from pathlib import Path

import child
import numba
import pytest

from fastsoftmax.runtime import numba_private, numba_state

TESTS = Path(__file__).parents[1]

START = f"""
import os, sys, threading
import numba, numpy as np
sys.path.insert(0, {str(TESTS)!r})

class Without:
    "An object that lacks some attributes."

    def __init__(self, whole, *gone):
        self.__dict__.update(whole=whole, gone=gone)

    def __getattr__(self, name):
        if name in self.gone:
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __call__(self, *args, **options):
        return self.whole(*args, **options)

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, i):
        return self.whole[i]

X = np.arange(6, dtype=np.float32).reshape(2, 3)
TERMS = np.exp(np.arange(6.0).reshape(2, 3))
SOFTMAX, LOGSUMEXP = TERMS / TERMS.sum(-1, keepdims=True), np.log(TERMS.sum(-1))

def right(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-6)
"""

FORK = """
import fastsoftmax as fs
from fastsoftmax.runtime import fork, numba_state
from workers import forked

def child():
    right(fs.logsumexp(X), LOGSUMEXP)

fs.softmax(X)
"""

CONFIG = """
import fastsoftmax as fs
config = sys.modules["numba.core.config"]
"""

# Name in the door: a process whose Numba is without it. What is asked for first shows that it was there.
STATE = {
    "COMPILER": f"""{FORK}
module = numba.core.compiler_lock
assert numba_state.COMPILER.lock() is not None
for lacking in (Without(module.global_compiler_lock, "_lock"), object()):
    module.global_compiler_lock = lacking
    assert numba_state.COMPILER.lock() is None
    forked(child)
del sys.modules[module.__name__]
assert numba_state.COMPILER.lock() is None
forked(child)
""",
    "LLVM": f"""{FORK}
from llvmlite.binding import ffi
assert numba_state.LLVM.lock() is not None
ffi.lib = Without(ffi.lib, "_lock")
assert numba_state.LLVM.lock() is None
forked(child)
""",
    "forget_inference": f"""{FORK}
registry = numba.core.registry
context = registry.cpu_target.typing_context
context.callstack._stack.append("a signature")
numba_state.forget_inference()
assert len(context.callstack) == 0

def hold():
    with numba.core.compiler_lock.global_compiler_lock:
        held.set()
        over.wait(100)

def child_that_forgets():
    sys.modules[registry.__name__] = registry
    child()

fork.PATIENCE = 0.1
for lacking in (Without(registry, "cpu_target"), None):
    held, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    sys.modules[registry.__name__] = lacking
    forked(child_that_forgets)
    sys.modules[registry.__name__] = registry
    over.set()
    thread.join()
child()
""",
    "chosen_threads": """
import fastsoftmax as fs
from fastsoftmax.runtime.numba_state import chosen_threads
from numba.np.ufunc import parallel
numba.set_num_threads(1)
assert chosen_threads() == 1
many = np.tile(X, (20_000, 1))
for gone in ("get_num_threads", "_is_initialized"):
    delattr(parallel, gone)
    assert chosen_threads() is None
    right(fs.softmax(many)[-2:], SOFTMAX)
del sys.modules[parallel.__name__]
assert chosen_threads() is None
""",
    "setting": f"""{CONFIG}
from fastsoftmax.runtime.numba_state import setting
os.environ["NUMBA_OPT"] = "1"
assert setting("OPT") == 3
for lacking in (Without(config, "OPT"), None):
    sys.modules[config.__name__] = lacking
    assert setting("OPT") == "1"
    right(fs.softmax(X), SOFTMAX)
""",
    "jit_disabled": f"""{CONFIG}
from fastsoftmax.runtime.numba_state import jit_disabled
os.environ["NUMBA_DISABLE_JIT"] = "1"
assert not jit_disabled()
sys.modules[config.__name__] = Without(config, "DISABLE_JIT")
assert jit_disabled()
del os.environ["NUMBA_DISABLE_JIT"]
assert not jit_disabled()
right(fs.softmax(X), SOFTMAX)
""",
    "checks_bounds": f"""{CONFIG}
from fastsoftmax.runtime.numba_state import checks_bounds
config.BOUNDSCHECK = 1
assert checks_bounds()
sys.modules[config.__name__] = Without(config, "BOUNDSCHECK")
assert not checks_bounds()
right(fs.softmax(X), SOFTMAX)
""",
}

CODE = {
    "known_options": """
from fastsoftmax.runtime.numba_private import known_options
options = numba.core.cpu.CPUTargetOptions
assert known_options(forceinline=False, no_such=1) == {"forceinline": False}
del numba.core.cpu.CPUTargetOptions
import fastsoftmax as fs
from fastsoftmax.machine import frontend
assert set(frontend.OPTIONS) == {"nogil", "error_model", "fastmath"}
assert frontend.NO_WRAPPERS == {}
right(fs.logsumexp(X), LOGSUMEXP)
right(fs.exp(X), TERMS.astype(np.float32))
""",
    "lean_options": """
from fastsoftmax.runtime import numba_private
assert numba_private.lean_options()
numba_private._lean.cache_clear()
del numba.core.compiler_machinery.register_pass
assert numba_private.lean_options() == {}
import fastsoftmax as fs
right(fs.logsumexp(X), LOGSUMEXP)
right(fs.exp(X), TERMS.astype(np.float32))
right(numba.njit(lambda x: fs.softmax(x))(X), SOFTMAX)
""",
    "load_extensions": """
from fastsoftmax.runtime.numba_private import load_extensions
import numba.core.entrypoints as entrypoints
kept = entrypoints.init_all
del entrypoints.init_all
load_extensions()
entrypoints.init_all = kept
import fastsoftmax as fs
right(fs.logsumexp(X), LOGSUMEXP)
""",
    "linked_module": """
import fastsoftmax as fs
from fastsoftmax.runtime import numba_private
right(fs.logsumexp(X), LOGSUMEXP)

def lacking():
    seen.append(1)
    raise ImportError

seen = []
numba_private._lean = lacking
right(fs.logsumexp(X.astype(float)), LOGSUMEXP)
right(fs.softmax(X), SOFTMAX)
assert seen
""",
    "treat_alike": """
import fastsoftmax as fs

def compiled(function):
    return numba.njit(lambda x: function(x))

right(compiled(fs.log)(X + 1), np.log(X + 1))
right(compiled(fs.softmax)(X), SOFTMAX)
functions = []
from fastsoftmax.njit import ufuncs as inside
treat_alike = inside.treat_alike
for module, gone, name in (
    (numba.core.typing.templates, "infer_global", "exp"),
    (numba.core.registry, "cpu_target", "expit"),
):
    def lacking(value, function):
        there = getattr(module, gone)
        delattr(module, gone)
        treat_alike(value, function)
        setattr(module, gone, there)

    inside.treat_alike = lacking
    functions.append(getattr(fs, name))
right(functions[0](X), np.exp(X))
right(functions[1](X), 1 / (1 + np.exp(-X)))
for function in functions:
    try:
        compiled(function)(X)
    except numba.core.errors.TypingError:
        continue
    raise AssertionError("still known")
""",
    "return_error": """
import fastsoftmax as fs
from fastsoftmax.machine import entry, external
from fastsoftmax.runtime.numba_private import return_error

def raised(function, gone, find):
    lacking = lambda context, *rest: return_error(Without(context, *gone), *rest)
    external.return_error, there = lacking, external.return_error
    entry.find, found = find, entry.find
    try:
        numba.njit(lambda x: function(x))(X)
    except Exception as error:
        return type(error)
    finally:
        external.return_error, entry.find = there, found

assert raised(fs.softmax, (), lambda name: 0) is ImportError
assert raised(fs.log_softmax, ("call_conv",), lambda name: 0) is SystemError
assert raised(fs.logsumexp, ("call_conv",), entry.find) is None
""",
    "return_raised": """
import fastsoftmax as fs
from fastsoftmax.machine import entry, external
from fastsoftmax.runtime.numba_private import return_raised

def stop(name):
    raise KeyboardInterrupt("now")

def raised(function, *gone):
    external.return_raised = lambda context, *rest: return_raised(Without(context, *gone), *rest)
    entry.find, found = stop, entry.find
    try:
        numba.njit(lambda x: function(x))(X)
    except BaseException as error:
        return error
    finally:
        entry.find = found

there, lacking = raised(fs.softmax), raised(fs.log_softmax, "call_conv")
assert type(there) is KeyboardInterrupt and there.args == ("now",)
assert isinstance(lacking, (KeyboardInterrupt, SystemError))
right(numba.njit(lambda x: fs.logsumexp(x))(X), LOGSUMEXP)
""",
    "compiled_call": """
import fastsoftmax as fs
from fastsoftmax.njit import written
from fastsoftmax.runtime.numba_private import compiled_call
called = []

def lacking(typing, *rest):
    called.append(rest)
    return compiled_call(Without(typing, "resolve_function_type"), *rest)

written.compiled_call = lacking
right(numba.njit(lambda x: fs.softmax(x))(X[:, ::-1]), SOFTMAX[:, ::-1])
assert called
""",
    "release": """
import fastsoftmax as fs
from fastsoftmax.njit import written
from fastsoftmax.runtime.numba_private import release
from numba.core.runtime import rtsys

def lost(function, x):
    right(function(x)[0], SOFTMAX[:, ::-1])
    stats = rtsys.get_allocation_stats()
    return stats.alloc - stats.free

assert lost(numba.njit(lambda x: (fs.softmax(x), 0)), X[:, ::-1]) == 0
written.release = lambda context, *rest: release(Without(context, "enable_nrt"), *rest)
assert lost(numba.njit(lambda x: (fs.softmax(x), 1)), X.astype(float)[:, ::-1]) > 0
""",
    "index_error": """
import fastsoftmax as fs
from fastsoftmax.machine import lowering
from fastsoftmax.runtime import numba_private
checks = []

def index_error(context):
    checks.append((numba_private.index_error(context), numba_private.index_error(Without(context, gone))))
    return checks[-1][1]

lowering.index_error = index_error
gone = "call_conv"
right(fs.logsumexp(X), LOGSUMEXP)
gone = "enable_boundscheck"
right(fs.logsumexp(X.astype(float)), LOGSUMEXP)
assert checks and all(there is not None and lacking is None for there, lacking in checks)
""",
}

# Views that are returned, transposed, kept on the stack; and no memory is lost or freed too early. The first
# compilation imports modules of Numba that need the name, too.
INTRINSICS = """
import fastsoftmax as fs
from numba.core.runtime import rtsys

@numba.njit
def both(x):
    return fs.softmax(x, axis=1), fs.logsumexp(x, axis=0)

numba.njit(lambda x: x.T.copy())(X)
module, name = {}
sys.modules[module] = Without(sys.modules[module], name)
x = X.astype(float)[:, ::-1]
for _ in range(3):
    p, total = both(x)
    right(p, SOFTMAX[:, ::-1])
    right(total, np.log(TERMS.sum(0))[::-1])
del p, total
stats = rtsys.get_allocation_stats()
assert stats.alloc == stats.free > 0 and stats.mi_alloc == stats.mi_free
"""
CODE["impl_ret_borrowed"] = INTRINSICS.format(("numba.core.imputils", "impl_ret_borrowed"))
CODE["populate_array"] = INTRINSICS.format(("numba.np.arrayobj", "populate_array"))
CODE["empty_array"] = INTRINSICS.format(("numba.np.arrayobj", "_empty_nd_impl"))


def names(module):
    """What a module offers: its functions, and the objects of its own classes."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and not isinstance(value, type)
    }


def test_every_use_has_a_case():
    assert names(numba_state) == set(STATE)
    assert names(numba_private) == set(CODE)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name == "chosen_threads" or hasattr(os, "fork") else pytest.mark.skip("no fork")
        )
        for name in STATE
    ],
)
def test_without_private_state(name):
    child.run(START + STATE[name])


# They must compile, not find code that is there, and leave no code that differs from that of others.
APART = {"known_options", "lean_options", "load_extensions", "linked_module", "index_error"}

# In some, Numba compiles the kernels, too, which takes 10 to 20 s.
KERNELS = {"lean_options", "linked_module", "index_error"}
BY_NUMBA = """
from fastsoftmax.machine import frontend, translate

def write(*_):
    raise frontend.TranslationError

translate.write = write
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in KERNELS else name for name in CODE]
)
def test_without_private_names(name, tmp_path):
    options = {}
    if name in APART:
        options.update(FASTSOFTMAX_CACHE_DIR=tmp_path / "cache", FASTSOFTMAX_PREBUILT=0)
    if name == "index_error":
        options["NUMBA_BOUNDSCHECK"] = 1
    if "get_allocation_stats" in CODE[name]:
        options["NUMBA_NRT_STATS"] = 1
    child.run(START + (BY_NUMBA if name in KERNELS else "") + CODE[name], **options)


# --- nobody else uses it -------------------------------------------------------------------------------------

PUBLIC = {"numba", "numba.types", "numba.core", "numba.core.errors", "numba.core.cgutils", "numba.extending"}
PUBLIC |= {"llvmlite", "llvmlite.ir", "llvmlite.binding"}
PARTS = {"numba": {*numba.__all__, "config", "types"}, "numba.core": {"cgutils", "errors"}}
PARTS["llvmlite"] = {"binding", "ir"}
# Attributes of Numba's objects that the door uses; those with common names are not among them.
PRIVATE = {"_cache", "_reduce", "_rebuild", "magic_tuple", "codegen", "_codegen", "_data_layout", "_tm"}
PRIVATE |= {"overloads", "fndesc", "get_pointer_to_function", "llvm_func_name", "targetctx", "func_id"}
PRIVATE |= {"_final_module", "_linking_libraries", "_reload_init", "_shared_module", "_ensure_finalized"}
PRIVATE |= {"_raise_if_finalized", "_get_module_for_linking", "_finalize_dynamic_globals", "_finalized"}
PRIVATE |= {"typing_context", "resolve_value_type", "callstack", "global_compiler_lock", "cpu_target"}
PRIVATE |= {"call_conv", "return_user_exc", "return_exc", "enable_boundscheck", "enable_nrt", "nrt"}
PRIVATE |= {"target_context", "entry_point", "_builder", "_context", "_datamodel", "_is_initialized"}


def private_uses(source):
    """What the source of a module uses of Numba and llvmlite that is private."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} - PUBLIC
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {alias.name for alias in node.names}
            found |= {f"{node.module}.{part}" for part in parts - PARTS.get(node.module, parts)} | {
                node.module
            } - PUBLIC
        elif isinstance(node, ast.Attribute) and node.attr in PRIVATE:
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & PRIVATE
            found |= {node.value} - PUBLIC
    return {name for name in found if name in PRIVATE or re.fullmatch(r"(numba|llvmlite)(\.\w+)+", name)}


@pytest.mark.parametrize("door", [numba_private, numba_state])
def test_the_search_finds_what_the_door_uses(door):
    assert len(private_uses(Path(door.__file__).read_text())) > 3


@pytest.mark.parametrize(
    ("line", "use"),
    [
        ("from numba.np.arrayobj import populate_array", "numba.np.arrayobj"),
        ("from numba import core, njit", "numba.core"),
        ("import numba.core.registry", "numba.core.registry"),
        ("getattr(dispatcher, '_cache')", "_cache"),
        ("sys.modules['llvmlite.binding.ffi']", "llvmlite.binding.ffi"),
        ("context.codegen()", "codegen"),
    ],
)
def test_the_search(line, use):
    assert private_uses(line) == {use}


def test_nobody_else_uses_it():
    door = {Path(module.__file__) for module in (numba_private, numba_state)}
    sources = sorted(set(child.PACKAGE.rglob("*.py")) - door)
    assert len(sources) > 30
    uses = {str(path.relative_to(child.PACKAGE)): private_uses(path.read_text()) for path in sources}
    assert {path: found for path, found in uses.items() if found} == {}
