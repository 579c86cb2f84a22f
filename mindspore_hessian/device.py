"""The device of the process: choose it once, before the first kernel, or find out why it cannot be
chosen.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import mindspore as ms

from mindspore_hessian import _compat
from mindspore_hessian._errors import DeviceError, FallbackWarning, warn
from mindspore_hessian.arguments import check_bool, check_choice, is_integer, shown

__all__ = ["DeviceInfo", "available_devices", "configure", "device_info", "jit_level"]

BACKENDS = ("Ascend", "GPU", "CPU")  # in the order in which "auto" prefers them
MODES = {"PYNATIVE": ms.PYNATIVE_MODE, "GRAPH": ms.GRAPH_MODE}
JIT_LEVELS = ("O0", "O1")

# precision -> (short matrix products, short convolutions); "default" is what both backends do when
# nothing is said
PRECISIONS = {"highest": (False, False), "default": (False, True), "high": (True, True)}
PRECISION_SWITCHES = {
    "GPU": ("matmul_allow_tf32", "conv_allow_tf32"),
    "Ascend": ("matmul_allow_hf32", "conv_allow_hf32"),
}

REMEDIES = {
    "Ascend": "install the Ascend driver, firmware and CANN, and source CANN's set_env.sh before Python starts",
    "GPU": "install the NVIDIA driver and the CUDA 11.6 and cuDNN 8 libraries that MindSpore needs, and put them "
    "on LD_LIBRARY_PATH before Python starts",
    "CPU": "install MindSpore from PyPI",
}

PROBE_SECONDS = (
    300  # a GPU newer than MindSpore's kernels compiles them for minutes at the first start
)
# One real kernel: with a broken driver every check of MindSpore's own passes. The last line it
# prints is the verdict.
PROBE = """
import sys
import numpy as np
import mindspore as ms
backend, number = sys.argv[1], int(sys.argv[2])
try:
    count = getattr(ms.device_context, backend.lower()).device_count()
    if not 0 <= number < count:
        sys.exit(print(f"its devices are numbered 0 to {count - 1}"))
    ms.set_device(backend, number)
    x = ms.Tensor(np.ones((2, 3), np.float32))
    right = (ms.ops.matmul(x, x.T).asnumpy() == 3).all()
    print("usable" if right else "it multiplies matrices wrongly")
except Exception as error:
    print(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
"""
# msrun's variables: the probe must not join the cluster that this process belongs to
CLUSTER = ("MS_ROLE", "MS_SCHED", "MS_WORKER", "MS_NODE", "RANK_")

_asked: dict[str, Any] = {}  # what configure() set in this process
# the limit of the CPU's instructions; what became of the wish of `limit_instructions`: open, late,
# told, heard or none; whether a graph had a convolution
_cpu: dict[str, Any] = {"isa": "ALL", "wish": "none", "convolutions": False}


def convolutions_are_slow() -> bool:
    """Whether convolutions need a limit: with AVX-512, the oneDNN of MindSpore 2.9 and 2.10 has
    only its reference loop for them, about 100 times slower."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if _compat.MS_VERSION < (2, 9) or limit.startswith(("SSE", "AVX2")) or limit == "AVX":
        return False
    if not _follows("CPU", "max_cpu_isa"):
        return False
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        return any(line.startswith("flags") and "avx512f" in line.split() for line in lines)
    return False


def limit_instructions() -> None:
    """As the package is imported: ``max_cpu_isa="AVX2"`` where convolutions need it and nothing
    else was said.

    ``MINDSPORE_HESSIAN_CPU_ISA=ALL`` in the environment, or one of oneDNN's own variables, keeps it
    as it was.
    """
    said = map(
        os.environ.get, ("MINDSPORE_HESSIAN_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    )
    if not any(said) and convolutions_are_slow():
        _compat.wish_cpu_isa("AVX2")
        _cpu.update(isa="AVX2", wish="open")


_SLOW = (
    "convolutions run about 100 times slower than they can on this CPU: MindSpore had run a "
    "kernel before mindspore_hessian was imported. Import it first, in a new process (in a "
    "notebook: restart the kernel), or set ONEDNN_MAX_CPU_ISA=AVX2 before Python starts."
)


def settle_instructions(convolutions: bool) -> None:
    """As a graph was compiled: whether the wish was heard, and one warning where it came too late
    for convolutions.
    """
    _cpu["convolutions"] = _cpu["convolutions"] or convolutions
    if _cpu["wish"] == "open":
        _cpu.update(
            {"isa": "AVX2", "wish": "heard"}
            if _compat.wish_was_heard()
            else {"isa": "ALL", "wish": "late"}
        )
    if _cpu["wish"] == "late" and convolutions:
        _cpu["wish"] = "told"
        warn(_SLOW, FallbackWarning)


_NARROW = (
    "importing mindspore_hessian keeps the CPU to AVX2, for the sake of convolutions, and no graph "
    "so far has one: MINDSPORE_HESSIAN_CPU_ISA=ALL before Python starts makes matrix products "
    "faster (2.5 and 3.5 times on an Intel Xeon, about 10% on AMD)."
)


def instructions_advice() -> str:
    """What could be faster with other instructions, by what was compiled so far; empty: nothing."""
    if _cpu["wish"] == "told":
        return _SLOW
    return _NARROW if _cpu["wish"] == "heard" and not _cpu["convolutions"] else ""


def _limit(isa: str) -> None:
    """What `configure` is asked for."""
    if _cpu["wish"] == "open" and isa == "ALL":
        _compat.wish_cpu_isa(None)
    elif isa == "AVX2" and (reason := _compat.limit_cpu_isa(isa)):
        raise DeviceError(f"max_cpu_isa={isa!r} cannot be had: {reason}.")
    elif isa == "ALL" and _cpu["isa"] != "ALL":
        raise DeviceError(
            "max_cpu_isa='ALL' cannot be had: this process keeps to AVX2 already. Call "
            "configure() first thing in a new process, or set MINDSPORE_HESSIAN_CPU_ISA=ALL "
            "before Python starts."
        )
    _cpu.update(isa=isa, wish="none")


@dataclass(frozen=True)
class DeviceInfo:
    """What this process computes on.

    ``honoured`` and ``ignored`` name the settings given to `configure` so far: those that this
    backend follows, and those that change nothing on it. ``precision`` is the one in force, and
    ``cpu_isa`` the limit of the CPU's instructions: "AVX2", or "ALL" where this process has set
    none.
    """

    backend: str
    device_id: int
    mindspore: str
    mode: str
    jit_level: str | None
    deterministic: bool
    precision: str
    honoured: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    cpu_isa: str = "ALL"


def configure(
    device: str = "auto",
    device_id: int | None = None,
    mode: str | int | None = None,
    jit_level: str | None = None,
    deterministic: bool | None = None,
    precision: str | None = None,
    pin_threads: bool | None = None,
    max_cpu_isa: str | None = None,
) -> DeviceInfo:
    """Choose the device of this process, and how it computes. Everything is checked before anything
    is changed.

    MindSpore fixes the device at the first kernel, so call this first. Calling it again with the
    same device is fine. What is left at None stays as it is.

    Args:
        device: "Ascend", "GPU" or "CPU"; "auto" keeps the device already in use, else takes the
            first of these three on which a kernel really runs (tried in a subprocess, once per
            process; a machine without the drivers is recognised without one).
        device_id: number of the device; None leaves it to MindSpore (0, or what msrun assigns).
        mode: "PYNATIVE" or "GRAPH", or MindSpore's constants. It is the mode of your own code: the
            transforms of this library are compiled in both.
        jit_level: "O0" or "O1", the optimisation level with which the transforms are compiled.
        deterministic: same result, bit for bit, at every run. MindSpore takes it once per process.
        precision: how float32 matrix products and convolutions are computed. Second derivatives
            difference nearly equal numbers: use "highest". That is float32 for all of them;
            "default" computes convolutions in TF32 on a GPU and in HF32 on Ascend, "high" matrix
            products too. The CPU computes in float32 whatever is asked.
            TF32 keeps 10 of the 23 mantissa bits of float32, HF32 about as many. Ascend takes it
            once per process.
        pin_threads: True gives each thread in which MindSpore computes on the CPU a core of its
            own, among those that the process may use; False lets them go again. Left alone, two of
            them often share a core, which doubles the time of a matrix product. For a process that
            has its cores to itself: two processes that pin to the same cores get in each other's
            way. It runs a small kernel, as the threads are there only then. Linux only (elsewhere
            ignored, as on GPU and Ascend).
        max_cpu_isa: "AVX2" keeps oneDNN, which computes convolutions and matrix products on the
            CPU, to these instructions, "ALL" lets it use every one. With AVX-512, MindSpore 2.9 and
            2.10 run a convolution by oneDNN's reference loop: one of 64 channels, 32 x 32, took 520
            to 840 ms, and 5 to 12 ms with "AVX2"; a product of 1024 x 1024 matrices about 10%
            longer (ci/bench/convolution.py). Importing this package sets "AVX2" on such a CPU,
            unless ``MINDSPORE_HESSIAN_CPU_ISA=ALL`` or a variable of oneDNN's is in the
            environment. oneDNN takes it before its first kernel (x86 on Linux; elsewhere ignored,
            as on GPU and Ascend).

    Returns:
        `DeviceInfo`, also when nothing changed.

    Raises:
        ValueError: an unknown device, mode, jit_level, precision or max_cpu_isa.
        TypeError: device_id is not an int, or deterministic or pin_threads is not a bool.
        DeviceError: the device is not usable; or the process already uses another one; or a setting
            that MindSpore takes once per process was set before to something else.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        mindspore.set_device, mindspore.set_deterministic, mindspore.device_context (MindSpore 2.7.2
        to 2.10.0); dnnl_set_max_cpu_isa of the oneDNN that they bring.

    Examples:
        >>> from mindspore_hessian.device import configure
        >>> info = configure(device="CPU", mode="PYNATIVE", precision="high")
        >>> info.backend, info.device_id, info.mode
        ('CPU', 0, 'PYNATIVE')
        >>> info.precision, info.ignored
        ('highest', ('precision',))
    """
    check_choice("device", device, ("auto", *BACKENDS))
    check_choice("mode", mode, (None, *MODES, *MODES.values()))
    check_choice("jit_level", jit_level, (None, *JIT_LEVELS))
    check_choice("precision", precision, (None, *PRECISIONS))
    check_choice("max_cpu_isa", max_cpu_isa, (None, "AVX2", "ALL"))
    if device_id is not None and not is_integer(device_id):
        raise TypeError(f"device_id must be an int or None, but got {shown(device_id)}")
    for name, value in {"deterministic": deterministic, "pin_threads": pin_threads}.items():
        if value is not None:
            check_bool(name, value)
    backend = _choose(device, device_id)
    switches = _precision_switches(backend, precision)
    _check_once(backend, deterministic, switches, precision)
    if max_cpu_isa and _follows(backend, "max_cpu_isa"):
        _limit(max_cpu_isa)

    try:
        if _compat.device_in_use() is None:
            ms.set_device(*((backend,) if device_id is None else (backend, device_id)))
        for switch, value in switches.items():
            getattr(getattr(ms.device_context, backend.lower()).op_precision, switch)(value)
        if deterministic is not None and not _compat.deterministic_is_set():
            ms.set_deterministic(deterministic)
        if mode is not None:
            ms.set_context(mode=MODES[mode] if isinstance(mode, str) else mode)
    except RuntimeError as error:
        raise DeviceError(
            f"MindSpore refused the device settings: {error}. Call configure() first thing in a "
            "new process (in a notebook: restart the kernel)."
        ) from error
    if pin_threads is not None and _follows(backend, "pin_threads"):
        _compat.pin_threads(pin_threads)
    settings = {
        "mode": mode,
        "jit_level": jit_level,
        "deterministic": deterministic,
        "precision": precision,
        "pin_threads": pin_threads,
        "max_cpu_isa": max_cpu_isa,
    }
    _asked.update({name: value for name, value in settings.items() if value is not None})
    return device_info()


def device_info() -> DeviceInfo:
    """The device and settings of this process. It starts nothing.

    Returns:
        `DeviceInfo`

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian.device import device_info
        >>> device_info().device_id
        0
    """
    backend, number = _compat.device_in_use() or (
        ms.get_context("device_target"),
        ms.get_context("device_id"),
    )
    ignored = tuple(name for name in _asked if not _follows(backend, name))
    return DeviceInfo(
        backend=backend,
        device_id=number,
        mindspore=ms.__version__,
        mode=next(name for name, value in MODES.items() if value == ms.get_context("mode")),
        jit_level=jit_level(),
        deterministic=ms.get_context("deterministic") == "ON",
        precision=_asked.get("precision", "default")
        if backend in PRECISION_SWITCHES
        else "highest",
        honoured=tuple(name for name in _asked if name not in ignored),
        ignored=ignored,
        cpu_isa=_cpu["isa"],
    )


def available_devices() -> tuple[str, ...]:
    """The backends on which a kernel really runs here, best first; "CPU" is the last.

    The first call may take as long as a start of MindSpore on each backend whose libraries are
    installed (at most 300 s); the answer is kept for the process.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian.device import available_devices
        >>> available_devices()[-1]
        'CPU'
    """
    return tuple(backend for backend in BACKENDS if why_unusable(backend) is None)


def jit_level() -> str | None:
    """The optimisation level given to `configure`, or None."""
    return _asked.get("jit_level")


def why_unusable(backend: str, device_id: int = 0) -> str | None:
    """None where a kernel runs on that device, else the reason in one line."""
    if _compat.device_in_use() == (backend, device_id):
        return None
    if not _compat.plugin_loaded(backend):
        return f"MindSpore did not load its libraries when it was imported; {REMEDIES[backend]}"
    if backend == "CPU":  # what MindSpore always has: no need to try
        return None if device_id == 0 else "it is one device, numbered 0"
    return _run_kernel(backend, device_id)


@functools.cache
def _run_kernel(backend: str, device_id: int) -> str | None:
    """Run `PROBE` in a process of its own, so that a driver that crashes or hangs does so there."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)
    }
    try:
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # MindSpore leaves files in the working directory
            child = subprocess.run(
                [sys.executable, "-c", PROBE, backend, str(device_id)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_SECONDS,
            )
    except subprocess.TimeoutExpired:
        return f"a kernel did not finish within {PROBE_SECONDS} s"
    except OSError as error:
        return f"the subprocess that tries a kernel did not start: {error}"
    if child.returncode:
        return f"the subprocess that tried a kernel died with status {child.returncode}"
    verdict = child.stdout.strip().splitlines()[-1:]
    return (
        None
        if verdict == ["usable"]
        else "".join(verdict) or "the subprocess that tried a kernel said nothing"
    )


def _choose(device: str, device_id: int | None) -> str:
    """The backend to use, or a DeviceError that says why there is none."""
    if used := _compat.device_in_use():
        wanted = (
            used[0] if device == "auto" else device,
            used[1] if device_id is None else device_id,
        )
        if wanted != used:
            raise DeviceError(
                f"{_name(*wanted)} was asked for, but this process already uses {_name(*used)}: "
                "MindSpore fixes the device when it is set or when the first kernel runs. Call "
                "configure() first thing in a new process (in a notebook: restart the kernel)."
            )
        return used[0]
    reasons = {}
    for backend in BACKENDS if device == "auto" else (device,):
        reason = why_unusable(backend, device_id or 0)
        if reason is None:
            return backend
        reasons[backend] = reason
    found = ". ".join(
        f"{_name(backend, device_id)} is not usable: {reason}"
        for backend, reason in reasons.items()
    )
    raise DeviceError(f"{found}. What can be used here: {', '.join(available_devices())}.")


def _follows(backend: str, setting: str) -> bool:
    """Whether a setting changes anything on a backend."""
    if setting == "precision":
        return backend in PRECISION_SWITCHES
    if setting == "max_cpu_isa":
        return backend == "CPU" and sys.platform == "linux" and platform.machine() == "x86_64"
    return setting != "pin_threads" or (backend == "CPU" and hasattr(os, "sched_setaffinity"))


def _name(backend: str, device_id: int | None) -> str:
    return backend if device_id is None else f"{backend}:{device_id}"


def _precision_switches(backend: str, precision: str | None) -> dict[str, bool]:
    """What to set in `mindspore.device_context.<backend>.op_precision`; nothing on CPU, or where
    nothing is asked.
    """
    if precision is None or backend not in PRECISION_SWITCHES:
        return {}
    return dict(zip(PRECISION_SWITCHES[backend], PRECISIONS[precision], strict=True))


def _check_once(
    backend: str, deterministic: bool | None, switches: dict[str, bool], precision: str | None
) -> None:
    """Refuse what MindSpore takes once per process and has already taken with another value."""
    now = ms.get_context("deterministic") == "ON"
    clashes = []
    if deterministic is not None and _compat.deterministic_is_set() and deterministic != now:
        clashes.append(f"deterministic={deterministic} (it is {now})")
    if backend == "Ascend" and any(
        _compat.hf32_is_set(switch, value) for switch, value in switches.items()
    ):
        clashes.append(f"precision={precision!r} (it is another)")
    if clashes:
        raise DeviceError(
            f"This process can no longer take {' and '.join(clashes)}: MindSpore sets it once per "
            "process. Call configure() first thing in a new process (in a notebook: restart the "
            "kernel)."
        )
