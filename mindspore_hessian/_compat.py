"""The only file that touches private or version-dependent MindSpore.

Each name says what it needs from MindSpore and in which versions it was seen (2.7.2, 2.8.0, 2.9.0,
2.10.0).
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import inspect
import itertools
import os
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, _c_expression, nn, ops
from mindspore._c_expression import (
    DeviceContextManager,
    DeviceManagerConf,
    MSContext,
    PrimitiveFunction_,
)
from mindspore.ops._grad_experimental.grad_base import bprop_getters
from mindspore.ops._vmap import vmap_base
from mindspore.ops.auto_generate import gen_ops_prim
from mindspore.ops.composite.base import _Grad
from mindspore.ops.operations import _grad_ops
from mindspore.ops.primitive import Primitive
from mindspore.train import anf_ir_pb2
from mindspore.train.summary import _summary_adapter, writer

try:  # 2.9 moved it, and warns at the old place
    from mindspore.graph.api import _cell_graph_executor, _pynative_executor
except ImportError:
    from mindspore.common.api import _cell_graph_executor, _pynative_executor

try:  # 2.10 moved it
    from mindspore.graph._parse import parser, resources
except ImportError:
    from mindspore._extends.parse import parser, resources

MS_VERSION: tuple[int, ...] = tuple(
    int(part) for part in ms.__version__.split(".")[:3] if part.isdigit()
)


# --- graphs written to files (used by _audit_graph.py) --------------------------------------------


@contextlib.contextmanager
def graphs_saved_in(folder: str, passes: str) -> Iterator[None]:
    """While MindSpore compiles inside, it writes the graphs after some passes into a folder.

    The public ``set_context(save_graphs=...)`` prints a warning. The variable for the folder goes
    before the context; that for the passes is read once in a process.
    """
    context, names = MSContext.get_instance(), _c_expression.ms_ctx_param
    settings = {names.save_graphs: 1, names.save_graphs_path: folder}
    variables = {
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": folder,
        "MS_DEV_DUMP_IR_PASSES": passes,
    }
    before = (
        {key: context.get_param(key) for key in settings},
        {key: os.environ.get(key) for key in variables},
    )
    os.environ.update(variables)
    for key, value in settings.items():
        context.set_param(key, value)
    try:
        yield
    finally:
        for key, value in before[0].items():
            context.set_param(key, value)
        for name, text in before[1].items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


# --- what MindSpore's parser reads (used by _inplace.py) ------------------------------------------


_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (ms.__file__, __file__)
)
_sources: dict[tuple[str, CodeType], tuple[list[str], int]] = {}


def _source_lines(fn: Any) -> tuple[list[str], int]:
    """`inspect.getsourcelines`, which of MindSpore's functions and ours reads each once: without
    that, it is a tenth of all compilations.
    """
    code = getattr(inspect.unwrap(getattr(fn, "__func__", fn)), "__code__", None)
    if code is None or not code.co_filename.startswith(_LIBRARIES):
        return inspect.getsourcelines(fn)
    key = (code.co_filename, code)
    if key not in _sources:
        _sources[key] = inspect.getsourcelines(fn)
    return _sources[key]


_inspect = SimpleNamespace(**{**vars(inspect), "getsourcelines": _source_lines})


@contextlib.contextmanager
def parsing(read: Callable[[FunctionType, Any, ast.AST], ast.AST]) -> Iterator[None]:
    """While MindSpore compiles inside, it goes on with ``read(function, self, tree)`` in the place
    of each syntax tree that it parsed, and an augmented assignment is the plain operator.
    """
    cls, operators = parser.Parser, getattr(resources, "parse_augassign_object_map", {})
    init, parse, before = cls.__init__, cls.parse, dict(operators)

    def remembering(self, fn, parse_method=None):
        init(self, fn, parse_method)
        self.owner_of_fn = getattr(fn, "__self__", None)

    def reading(self):
        tokens, tree = parse(self)
        return tokens, tree if tree is None else read(self.fn, self.owner_of_fn, tree)

    cls.__init__, cls.parse, parser.inspect = remembering, reading, _inspect
    operators.update(
        (kind, resources.parse_object_map[kind])
        for kind in before
        if kind in resources.parse_object_map
    )
    index_by_views = os.environ.pop("MS_DEV_TENSOR_INDEX_BOOST", None)  # it would write into views
    try:
        yield
    finally:
        cls.__init__, cls.parse, parser.inspect = init, parse, inspect
        operators.update(before)
        if index_by_views is not None:
            os.environ["MS_DEV_TENSOR_INDEX_BOOST"] = index_by_views


def graph_text(graph: Graph) -> bytes:
    """The compiled graph as MindSpore serialises it, with the names of its primitives; empty where
    it cannot.
    """
    try:
        return graph._executor.get_func_graph_proto(graph._phase, "anf_ir")
    except RuntimeError:
        return b""


def has_convolution(graph: Graph) -> bool:
    """Whether a compiled graph has one."""
    text = graph_text(graph)
    return any(name in text for name in (b"Conv2D", b"Conv3D"))


def keeps_buffers(graph: Graph) -> bool:
    """Whether a compiled graph goes on reading the weights' old buffers after ``set_data``: in
    branches on values, and in 2.7.2 in loops that its text does not show (later ones fail as
    Cells)."""
    return MS_VERSION < (2, 10, 0) or b"Switch" in graph_text(graph)


def states(graph: Graph) -> dict[str, tuple[int, int]]:
    """The Parameters that a compiled graph assigns to (``ops.assign``, ``self.count = ...``): how
    often, and how often it reads them."""
    text = graph_text(graph)
    if b"Assign" not in text:
        return {}
    model = anf_ir_pb2.ModelProto()
    model.ParseFromString(text)
    writes: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    for node in model.graph.node:
        inputs = [item.name for item in node.input]
        if node.op_type in ("Assign", "AssignAdd", "AssignSub"):
            writes[inputs.pop(0)] += 1
        reads.update(inputs)
    return {name: (count, reads[name]) for name, count in writes.items()}


# --- values ---------------------------------------------------------------------------------------

PRIMITIVE_TYPES: tuple[type, ...] = (Primitive, PrimitiveFunction_)


# (weight names and) gradients by weights: inside a graph, only this tells the name of a Parameter
GRADIENT_WITH_NAMES = _Grad(get_by_list=True, return_ids=True)


def is_tensor_method(fn: object) -> bool:
    """Whether `fn` is a Tensor method as a plain function (``Tensor.sum``): C++, which the parser
    runs as Python.
    """
    return (
        getattr(fn, "__qualname__", "").startswith("Tensor.")
        or type(fn).__name__ == "instancemethod"
    )


def plain_tensor(tensor: Tensor) -> Tensor:
    """A Parameter as the Tensor it holds; other Tensors as they are."""
    return tensor.value() if isinstance(tensor, ms.Parameter) else tensor


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values, perhaps as a view of MindSpore's memory. numpy has no bfloat16: it comes as
    float32.
    """
    if tensor.dtype == ms.bfloat16:
        tensor = tensor.astype(ms.float32)
    return tensor.asnumpy()


# --- compiling and running graphs (used by _compile.py) -------------------------------------------

_compilations = itertools.count(1)
_COLLECTED = 16  # compilations after which garbage is collected
_OF_PYTHON = 1000  # Python 3.12 starts with some hundred objects frozen


@contextlib.contextmanager
def _garbage_waits() -> Iterator[None]:
    """MindSpore collects Python's garbage at every compilation, which takes the longer the more
    objects there are: what is there already is kept out of that, but for once in a while. Not where
    the user froze objects of their own."""
    if gc.get_freeze_count() > _OF_PYTHON or next(_compilations) % _COLLECTED == 0:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Holder(nn.Cell):
    """A Cell around one graph function. Deleting it frees the graph, which deleting a ``@jit``
    function does not.
    """

    def __init__(self, function: Callable, jit_level: str):
        super().__init__(auto_prefix=False)
        # past Cell.__setattr__: a network among what `function` captures must not become a child of
        # this Cell and in a tuple: a Cell that calls an attribute of its own with *args is never
        # freed, nor is its graph
        object.__setattr__(self, "functions", (function,))
        # STRICT: what MindSpore cannot compile it would otherwise run as Python inside the graph,
        # with zero gradients
        self.set_jit_config(ms.JitConfig(jit_level=jit_level, jit_syntax_level="STRICT"))

    def construct(self, *args):
        return self.functions[0](*args)


class Graph:
    """A graph function, compiled once for the shapes and dtypes of its first arguments.

    It reads the weights of the captured networks anew at every call (a ``@jit`` function would go
    on reading the buffer of its first call after ``set_data``). It is not seen by PyNative's
    gradient recording: see `Recorded`.
    """

    def __init__(self, function: Callable, tensors: tuple, jit_level: str):
        self._cell = _Holder(function, jit_level)
        with _garbage_waits():
            self._cell.compile(*tensors)
        self._phase = self._cell.phase_cache[self._cell.phase]
        self._executor = _cell_graph_executor._graph_executor

    def __call__(self, tensors: tuple):
        return self._executor(tensors, self._phase)

    def stale(self) -> bool:
        """Whether it is to be compiled anew: the user released all graphs (ms_memory_recycle)."""
        return not self._executor.has_compiled(self._phase)


class Recorded:
    """The same as a ``@jit`` function: PyNative's gradient recording sees it, so that it can be
    differentiated.
    """

    def __init__(self, function: Callable, tensors: tuple, jit_level: str):
        del tensors

        def recorded(*args):
            return function(*args)

        self._call = ms.jit(recorded, fullgraph=True, jit_level=jit_level)

    def __call__(self, tensors: tuple):
        return self._call(*tensors)

    def stale(self) -> bool:
        """Never: the buffers of the weights are in the key of a recorded graph."""
        return False


class Looped(Recorded):
    """A ``@jit`` function, for what `fails_as_cell`: a `while` over a Tensor, differentiated twice.

    It keeps the buffers that the weights had when it was compiled.
    """

    def __init__(
        self, function: Callable, tensors: tuple, jit_level: str, weights: Sequence[ms.Parameter]
    ):
        super().__init__(function, tensors, jit_level)
        self._weights = tuple(weights)
        self._buffers = self._current()
        self(tensors)  # compiles

    def _current(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self._weights)

    def stale(self) -> bool:
        """Whether ``set_data`` gave a weight another buffer."""
        return self._current() != self._buffers


def fails_as_cell(err: BaseException) -> bool:
    """Whether a graph that does not compile as a Cell may do so as a ``@jit`` function, whose
    passes are others.
    """
    return "The parameters number of the function is" in str(err)


def lost_its_way(err: BaseException) -> bool:
    """Whether MindSpore failed inside itself at a graph that it compiles at other times.

    Seen in one whole run of the tests out of several, at the weights' gradient of a Laplacian
    inside a graph. Not found again by compiling in-place operators before, by deleting compiled
    graphs meanwhile, or by the tests before it.
    """
    return any(
        text in str(err)
        for text in ("Illegal AnfNode for evaluating", "[real_primal_func] is null")
    )


def is_recording() -> bool:
    """Whether PyNative records a gradient now: the caller is inside ``ms.grad``, ``ms.vjp`` or a
    training step. After an exception in one of them MindSpore goes on recording.
    """
    flag = _pynative_executor.requires_grad
    return bool(flag() if callable(flag) else flag)


def is_recorded(value: Any) -> bool:
    """Whether that gradient would go through a Tensor."""
    return isinstance(value, Tensor) and is_recording() and bool(value._requires_grad)


def disk_cache_enabled() -> bool:
    """Whether MindSpore's on-disk compile cache is on, by context or by environment."""
    return (
        bool(ms.get_context("enable_compile_cache"))
        or os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1"
    )


def runtime_started() -> bool:
    """Whether MindSpore has run a kernel in this process: its actor threads are there (Linux tells;
    else assume so).
    """
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return True
    for task in tasks:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
            if file.read().startswith(("ActorThread", "backend_queue")):
                return True
    return False


def pin_threads(apart: bool) -> None:
    """Each thread in which MindSpore computes on the CPU on a core of its own, or, for False, on
    any. Linux only.

    Kernels share the work between ActorThreads and KernelThreads, which a first graph starts. Linux
    puts a thread that was just woken beside the one that woke it, and they are done before it moves
    one away.
    """
    Graph(_one_more, (Tensor([1.0]),), "O0")((Tensor([1.0]),))
    cores = sorted(os.sched_getaffinity(os.getpid()))
    threads = []
    for task in sorted(os.listdir("/proc/self/task"), key=int):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
            if file.read().startswith(("ActorThread", "KernelThread")):
                threads.append(int(task))
    for number, thread in enumerate(threads):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, {cores[number % len(cores)]} if apart else set(cores))


def _one_more(x):
    return x + 1


_ISA = "ONEDNN_MAX_CPU_ISA"
_AVX2 = 0x7  # dnnl_cpu_isa_avx2; what has no other bits is no wider


def _onednn() -> ctypes.CDLL | None:
    found = sorted(Path(ms.__file__).parent.glob("lib/libdnnl.so*"))
    with contextlib.suppress(IndexError, OSError):
        return ctypes.CDLL(str(found[0]))
    return None


def wish_cpu_isa(name: str | None) -> None:
    """Let oneDNN find an instruction set in the environment as its first kernel runs; None takes
    that away.

    Past `os.environ`, so that a copy of that for another process does not have it. Not by oneDNN's
    function, which a process can call once only.
    """
    os.putenv(_ISA, name) if name else os.unsetenv(_ISA)


def wish_was_heard() -> bool:
    """Whether oneDNN keeps to AVX2, from now on in any case; the wish is taken out of the
    environment again.
    """
    library = _onednn()
    effective = library.dnnl_get_effective_cpu_isa() if library else 0
    os.unsetenv(_ISA)
    return effective | _AVX2 == _AVX2


def limit_cpu_isa(name: str) -> str | None:
    """Keep the kernels of oneDNN, which MindSpore brings along, to an instruction set of x86; else
    why not, and what to do."""
    isa = {"AVX2": _AVX2}[name]
    library = _onednn()
    if library is None:
        return "MindSpore is here without a oneDNN that can be loaded. Leave it out"
    if library.dnnl_set_max_cpu_isa(isa) == 0 or library.dnnl_get_effective_cpu_isa() | isa == isa:
        return None
    return (
        "a kernel has run, and oneDNN takes it once per process. Call configure() first thing in "
        "a new process (in a notebook: restart the kernel)"
    )


READS_CAPTURED_ANEW = MS_VERSION >= (2, 10, 0)  # earlier ones keep buffers: see `keeps_buffers`


def reference(tensor: Tensor, name: str) -> ms.Parameter:
    """A Parameter with the memory of a Tensor: without a copy, if that is contiguous."""
    parameter = ms.Parameter(Tensor(np.zeros(1), tensor.dtype), name=name, requires_grad=False)
    refer(parameter, tensor)
    return parameter


def refer(parameter: ms.Parameter, tensor: Tensor) -> None:
    """Give a Parameter the memory of a Tensor."""
    parameter.assign_value(tensor if tensor.is_contiguous() else tensor.contiguous())


def assign(parameter: ms.Parameter, value: np.ndarray) -> None:
    """Write `value` into the buffer that the Parameter has (``set_data`` would give it another
    one).
    """
    ops.assign(parameter, Tensor(value, parameter.dtype))


@contextlib.contextmanager
def kept(parameters: Sequence[ms.Parameter]) -> Iterator[list[np.ndarray]]:
    """The values of the Parameters; at the end, also after an error, those that changed are back,
    bit for bit.
    """
    before = [to_numpy(parameter).copy() for parameter in parameters]
    try:
        yield before
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            if to_numpy(parameter).tobytes() != value.tobytes():
                assign(parameter, value)


# --- rule registries (used by rules/) -------------------------------------------------------------


def derivative_registry() -> dict:
    """Python derivatives of primitives: name -> getter(prim) -> bprop(*inputs, out, dout). Graph
    mode only.
    """
    return bprop_getters


def batching_registry() -> dict:
    """Batching rules of primitives: name -> getter(prim, axis_size) -> rule(*(value, dim)) -> (out,
    dim).
    """
    return getattr(vmap_base.vmap_rules_getters, "stands_for", vmap_base.vmap_rules_getters)


def stand_for_batching_registry(make: Callable[[dict], Any]) -> None:
    """MindSpore's vmap pass asks ``make(registry)`` from now on, which has the registry as its
    `stands_for`.
    """
    vmap_base.vmap_rules_getters = make(batching_registry())


def restore_batching_registry() -> None:
    """It asks the registry itself again."""
    vmap_base.vmap_rules_getters = batching_registry()


def function_named(name: str) -> FunctionType | None:
    """The Python function or method of MindSpore with a dotted name; None where there is none."""
    with contextlib.suppress(ImportError, AttributeError):
        function = pkgutil.resolve_name(name)
        return function if isinstance(function, FunctionType) else None
    return None


def copy_function(
    fn: FunctionType, code: CodeType | None = None, closure: tuple | None = None
) -> FunctionType:
    """A new function object with the same behaviour, without attributes such as ``__wrapped__``."""
    copy = FunctionType(
        code or fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, closure or fn.__closure__
    )
    copy.__kwdefaults__ = fn.__kwdefaults__
    copy.__module__, copy.__qualname__ = fn.__module__, fn.__qualname__
    return copy


def plain(name: str) -> Callable | None:
    """A copy of that function in whose place MindSpore compiles nothing else."""
    found = function_named(name)
    return found and copy_function(found)


class _StandIns(dict):
    """Functions that MindSpore compiles in the place of its own, by the dotted name of those.

    Its parser reads what `inspect.unwrap` gives, so however the function is reached (an attribute,
    a global, a closure, a list, a Tensor method, a Cell of MindSpore) it meets ``__wrapped__``.
    """

    def get(self, name, default=None):
        return getattr(function_named(name), "__wrapped__", default)

    def __setitem__(self, name, stand_in):
        function_named(name).__wrapped__ = stand_in

    def __delitem__(self, name):
        del function_named(name).__wrapped__


def composition_registry() -> dict:
    """Compositions in the place of MindSpore's: dotted name -> function with the same parameters.
    Graph mode only.
    """
    return _StandIns()


def is_constant(value: object) -> bool:
    """Whether a value is known as MindSpore compiles; for use in what it compiles."""
    return _IS_CONSTANT(value)


def backward(name: str) -> Primitive:
    """A backward primitive without options, made by its name."""
    for module in (gen_ops_prim, _grad_ops):
        if hasattr(module, name):
            return getattr(module, name)()
    raise AttributeError(name)


def takes_attributes(name: str) -> bool:
    """Whether a primitive may keep options in attributes. One that MindSpore generates has
    arguments only.
    """
    return not hasattr(gen_ops_prim, name)


class _Watched(dict):
    """A registry of batching rules that notes which it gave, and never answers "none" (MindSpore
    would unroll the primitive): it calls ``otherwise(name, asked)`` for a rule, which may raise."""

    def __init__(self, registry: dict, otherwise: Callable, asked: dict[str, bool]):
        super().__init__(registry)
        self._otherwise, self._asked = otherwise, asked

    def get(self, key, default=None):
        rule = super().get(key, None)
        if isinstance(key, str) and key not in _STRUCTURAL:
            if rule is None:
                return self._otherwise(key, self._asked)
            self._asked[key] = True
        return default if rule is None else rule


# applied to what has no batch axis, or to tuples: MindSpore handles these itself
_STRUCTURAL = frozenset(
    {"mutable", "Return", "Switch", "SwitchLayer", "Partial", "Load", "UpdateState"}
)


@contextlib.contextmanager
def batching_rules_watched(
    otherwise: Callable[[str, dict[str, bool]], Callable],
) -> Iterator[dict[str, bool]]:
    """While MindSpore compiles inside: each primitive that it wants a batching rule for, and
    whether there is one. Where there is none, `otherwise` makes it, or raises; it says so in the
    dict where something batched needs it."""
    asked: dict[str, bool] = {}
    before = vmap_base.vmap_rules_getters
    vmap_base.vmap_rules_getters = _Watched(batching_registry(), otherwise, asked)
    try:
        yield asked
    finally:
        vmap_base.vmap_rules_getters = before


# --- device API (used by device.py) ---------------------------------------------------------------
# The device API is public and the same in all four versions; private is only whether a device can
# still be chosen.


def plugin_loaded(backend: str) -> bool:
    """Whether this process loaded MindSpore's part for `backend`; that says nothing about the
    driver or a device.
    """
    return MSContext.get_instance().is_pkg_support_device(backend)


def device_in_use() -> tuple[str, int] | None:
    """The backend and number that this process can no longer change: set before, or in use by a
    kernel that ran.
    """
    conf, contexts = DeviceManagerConf.get_instance(), DeviceContextManager.get_instance()
    if conf.is_device_enable():
        return conf.get_device_target(), conf.get_device_id()
    target = ms.get_context("device_target")
    context = contexts.get_device_context(target)  # None until a first kernel
    return (
        (target, ms.get_context("device_id"))
        if context is not None and context.initialized()
        else None
    )


def deterministic_is_set() -> bool:
    """Whether `mindspore.set_deterministic` was called: it raises the second time."""
    return DeviceManagerConf.get_instance().is_deterministic_configured()


def hf32_is_set(switch: str, value: bool) -> bool:
    """Whether Ascend's `switch` was set before to something else than `value`: it can be set
    once.
    """
    conf = (
        _c_expression.AscendOpPrecisionConf.get_instance()
    )  # exists where the Ascend part is loaded
    return getattr(conf, f"is_{switch}_configured")() and getattr(conf, switch)() != str(int(value))


# --- primitives used by derivative rules ----------------------------------------------------------

from mindspore.ops.auto_generate.gen_ops_prim import (  # noqa: E402, F401
    LogSoftmaxGrad,
    PowTensorScalar,
    ResizeBicubic,
    ResizeBilinearV2,
    ResizeLinear1D,
    ResizeNearestNeighborV2,
    UpsampleNearest1D,
    UpsampleNearest2D,
    UpsampleNearest3D,
    UpsampleTrilinear3D,
)
from mindspore.ops.operations._grad_ops import (  # noqa: E402, F401
    AvgPool3DGrad,
    Conv3DBackpropFilter,
    LRNGrad,
    LSTMGrad,
    MaxPoolGrad,
    PdistGrad,
)
from mindspore.ops.operations._inner_ops import TensorCopySlices  # noqa: E402, F401
from mindspore.ops.operations.image_ops import CropAndResizeGradBoxes, CropAndResizeGradImage  # noqa: E402, F401
from mindspore.ops.operations.linalg_ops import Eigh, Svd  # noqa: E402, F401
from mindspore.ops.operations.nn_ops import Conv3DBackpropInput  # noqa: E402, F401

pow_tensor_scalar = PowTensorScalar()
_IS_CONSTANT = ops.functional.isconstant


class SummaryWriter:
    """Scalars in MindSpore's own event file, with the methods of tensorboardX's class.

    MindSpore's `SummaryRecord` forks two generations of processes to write them, which hang now
    and then where threads run, and with them the end of the program.
    """

    def __init__(self, folder: str):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        names = (
            _summary_adapter.get_event_file_name("events", "_MS", str(second))
            for second in itertools.count(int(time.time()))
        )
        free = next(path.absolute() / name for name in names if not (path / name).exists())
        self._writer = writer.SummaryWriter(str(free))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        scalar = {"_type": "Scalar", "name": name, "data": np.asarray(value, np.float32)}
        event = _summary_adapter.package_summary_event([scalar], step, time.time())
        self._writer.write("summary", event.SerializeToString())

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def class_keys(name: str) -> list[int]:
    """The keys under which MindSpore files its Python rules besides the name: the ids of the
    classes of that name.
    """
    found, waiting = [], [Primitive]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__name__ == name:
            found.append(id(cls))
    return found


def heeds_python_derivatives() -> bool:
    """Whether MindSpore reads MS_DEV_USE_PY_BPROP, or read it, with PadV3 in it. Compiles one tiny
    gradient.

    MindSpore asks the registry for the derivative of a primitive made in Python at every
    compilation (it remembers those of the others): whether it asks for that of PadV3 tells whether
    Python's rule goes before C++'s.
    """
    asked = []
    ours = bprop_getters.get("PadV3", None)

    def getter(prim):
        asked.append(prim)

        def bprop(x, paddings, value, out, dout):
            return dout[1:3], 0, ops.zeros_like(value)

        return bprop

    pad = ops.PadV3()

    def padded(x):
        return pad(x, (1, 1), Tensor([0.0], ms.float32))

    def gradient(x):
        return ops.GradOperation()(padded)(x)

    bprop_getters["PadV3"] = getter
    try:
        ms.jit(gradient)(Tensor(np.ones(2, np.float32)))
    finally:
        del bprop_getters["PadV3"]
        if ours is not None:
            bprop_getters["PadV3"] = ours
    return bool(asked)


# --- helpers used by batching rules ---


def strided_slice_grad(*masks: int) -> ms.ops.Primitive:
    """The backward of StridedSlice, which MindSpore has as a class of its own with the masks as
    attributes.
    """
    return _grad_ops.StridedSliceGrad(*masks)
