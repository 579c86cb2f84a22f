"""Choosing a device: on this machine, and on machines with GPUs and Ascends that are made up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import pytest

from mindspore_hessian import _compat, device
from mindspore_hessian._errors import DeviceError, HessianError

ROOT = Path(__file__).resolve().parents[1]


class Machine:
    """A made-up machine: MindSpore's setters record what they are given and the probe looks into a
    table.
    """

    def __init__(self, monkeypatch, counts, in_use=None, deterministic=None):
        self.calls, self.probed, self.counts, self.in_use = [], [], {"CPU": 1, **counts}, in_use
        self.deterministic, self.hf32 = deterministic, {}
        self.settings = {"device_target": "CPU", "device_id": 0, "mode": ms.PYNATIVE_MODE}
        monkeypatch.setattr(device, "_asked", {})
        monkeypatch.setattr(device, "_run_kernel", self.run_kernel)
        monkeypatch.setattr(_compat, "plugin_loaded", self.counts.__contains__)
        monkeypatch.setattr(_compat, "device_in_use", lambda: self.in_use)
        monkeypatch.setattr(_compat, "deterministic_is_set", lambda: self.deterministic is not None)
        monkeypatch.setattr(
            _compat, "hf32_is_set", lambda switch, value: self.hf32.get(switch, value) != value
        )
        monkeypatch.setattr(ms, "set_device", self.set_device)
        monkeypatch.setattr(ms, "set_deterministic", self.set_deterministic)
        monkeypatch.setattr(ms, "set_context", self.set_context)
        monkeypatch.setattr(
            ms,
            "get_context",
            lambda name: (
                ("ON" if self.deterministic else "OFF")
                if name == "deterministic"
                else self.settings[name]
            ),
        )
        for backend, switches in device.PRECISION_SWITCHES.items():
            for switch in switches:
                setter = lambda value, switch=switch: self.calls.append((switch, value))  # noqa: E731
                monkeypatch.setattr(
                    getattr(ms.device_context, backend.lower()).op_precision, switch, setter
                )

    def run_kernel(self, backend, number):
        self.probed.append((backend, number))
        count = self.counts[backend]
        if isinstance(count, str):
            return count
        return None if 0 <= number < count else f"its devices are numbered 0 to {count - 1}"

    def set_device(self, backend, number=None):
        self.calls.append(("device", backend, number))
        self.in_use = (backend, number or 0)

    def set_context(self, mode):
        self.calls.append(("mode", mode))
        self.settings["mode"] = mode

    def set_deterministic(self, value):
        self.calls.append(("deterministic", value))
        self.deterministic = value


@pytest.fixture
def machine(monkeypatch):
    return lambda counts=(), **state: Machine(monkeypatch, dict(counts), **state)


BROKEN = "the subprocess that tried a kernel died with status -11"
SELECTION = [
    # what is there, what is asked for, what is chosen
    ({}, {}, ("CPU", 0)),
    ({"GPU": 2}, {}, ("GPU", 0)),
    ({"GPU": 2, "Ascend": 8}, {}, ("Ascend", 0)),
    ({"GPU": 2, "Ascend": BROKEN}, {}, ("GPU", 0)),
    ({"GPU": BROKEN, "Ascend": BROKEN}, {}, ("CPU", 0)),
    ({"GPU": 2}, {"device_id": 1}, ("GPU", 1)),
    ({"GPU": 2, "Ascend": 8}, {"device": "GPU", "device_id": 1}, ("GPU", 1)),
    ({"GPU": 2, "Ascend": 8}, {"device": "CPU"}, ("CPU", 0)),
]


@pytest.mark.parametrize(("counts", "asked", "chosen"), SELECTION)
def test_selection(machine, counts, asked, chosen):
    fake = machine(counts)
    info = device.configure(**asked)
    assert (info.backend, info.device_id) == chosen
    assert fake.calls == [("device", chosen[0], asked.get("device_id"))]


REFUSED = [
    # what is there, what is asked for, words of the message
    ({}, {"device": "GPU"}, ["GPU is not usable", "LD_LIBRARY_PATH", "What can be used here: CPU"]),
    ({}, {"device": "Ascend"}, ["Ascend is not usable", "set_env.sh"]),
    ({"GPU": BROKEN}, {"device": "GPU"}, ["died with status -11"]),
    (
        {"GPU": 2},
        {"device": "GPU", "device_id": 2},
        ["GPU:2", "numbered 0 to 1", "What can be used here: GPU, CPU"],
    ),
    ({"GPU": 2}, {"device": "GPU", "device_id": -1}, ["GPU:-1", "numbered 0 to 1"]),
    ({"GPU": 2}, {"device_id": 7}, ["GPU:7", "CPU:7"]),
    ({}, {"device": "CPU", "device_id": 1}, ["CPU:1", "numbered 0"]),
]


@pytest.mark.parametrize(("counts", "asked", "words"), REFUSED)
def test_a_device_that_is_not_there(machine, counts, asked, words):
    fake = machine(counts)
    with pytest.raises(DeviceError) as caught:
        device.configure(mode="GRAPH", deterministic=True, jit_level="O1", **asked)
    assert all(word in str(caught.value) for word in words), caught.value
    assert fake.calls == [] and device.jit_level() is None, "nothing half done"
    assert isinstance(caught.value, HessianError) and isinstance(caught.value, RuntimeError)


INVALID = [
    (
        {"device": "gpu"},
        ValueError,
        "device must be one of 'auto', 'Ascend', 'GPU', 'CPU', but got 'gpu'",
    ),
    ({"device": None}, ValueError, "'CPU', but got None"),
    (
        {"mode": "eager"},
        ValueError,
        "mode must be one of None, 'PYNATIVE', 'GRAPH', 1, 0, but got 'eager'",
    ),
    ({"mode": True}, ValueError, "1, 0, but got True"),
    ({"jit_level": "O2"}, ValueError, "jit_level must be one of None, 'O0', 'O1', but got 'O2'"),
    (
        {"precision": "tf32"},
        ValueError,
        "precision must be one of None, 'highest', 'default', 'high', but got 'tf32'",
    ),
    ({"device_id": "0"}, TypeError, "device_id must be an int or None, but got '0'"),
    ({"device_id": True}, TypeError, "device_id must be an int or None, but got True"),
    ({"deterministic": 1}, TypeError, "deterministic must be a bool, but got 1"),
    ({"pin_threads": "yes"}, TypeError, "pin_threads must be a bool, but got 'yes'"),
    (
        {"max_cpu_isa": "AVX512"},
        ValueError,
        "max_cpu_isa must be one of None, 'AVX2', 'ALL', but got 'AVX512'",
    ),
]


@pytest.mark.parametrize(("asked", "error", "message"), INVALID)
def test_invalid_arguments_change_nothing(machine, asked, error, message):
    fake = machine()
    with pytest.raises(error) as caught:
        device.configure(**{"mode": "GRAPH", "jit_level": "O1", **asked})
    assert message in str(caught.value)
    assert fake.calls == [] and device.jit_level() is None


def test_the_same_device_twice_is_fine(machine):
    fake = machine({"GPU": 2})
    first = device.configure("GPU", 1)
    assert device.configure("GPU", 1) == device.configure("GPU") == device.configure() == first
    assert fake.calls == [("device", "GPU", 1)]


@pytest.mark.parametrize(
    "asked", [{"device": "CPU"}, {"device": "GPU", "device_id": 0}, {"device_id": 0}]
)
def test_another_device_is_refused(machine, asked):
    machine({"GPU": 2}, in_use=("GPU", 1))
    with pytest.raises(DeviceError, match="already uses GPU:1.*new process"):
        device.configure(**asked)


def test_auto_keeps_the_device_in_use_and_tries_nothing(machine):
    fake = machine({"GPU": 1}, in_use=("CPU", 0))
    assert device.configure().backend == "CPU"
    assert fake.calls == [] and fake.probed == []


PRECISION = [
    ("GPU", "highest", {"matmul_allow_tf32": False, "conv_allow_tf32": False}),
    ("GPU", "default", {"matmul_allow_tf32": False, "conv_allow_tf32": True}),
    ("Ascend", "high", {"matmul_allow_hf32": True, "conv_allow_hf32": True}),
    ("CPU", "high", {}),
]


@pytest.mark.parametrize(("backend", "precision", "switches"), PRECISION)
def test_precision(machine, backend, precision, switches):
    fake = machine({"GPU": 1, "Ascend": 1})
    info = device.configure(backend, precision=precision)
    assert dict(fake.calls[1:]) == switches
    assert info.precision == (precision if switches else "highest")
    assert (info.honoured, info.ignored) == (
        (("precision",), ()) if switches else ((), ("precision",))
    )


@pytest.mark.parametrize(
    ("backend", "settled"),
    [
        ("CPU", [True, False]),
        ("GPU", []),
        ("Ascend", []),
        pytest.param("elsewhere", [], id="CPU without Linux"),
    ],
)
def test_threads_are_pinned_on_cpu_alone(machine, monkeypatch, backend, settled):
    machine({"GPU": 1, "Ascend": 1})
    pinned = []
    monkeypatch.setattr(_compat, "pin_threads", pinned.append)
    if backend == "elsewhere":
        backend = "CPU"
        monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    info = device.configure(backend, pin_threads=True)
    assert (info.honoured, info.ignored) == (
        (("pin_threads",), ()) if settled else ((), ("pin_threads",))
    )
    device.configure(pin_threads=False)
    device.configure()
    assert pinned == settled


@pytest.mark.parametrize(
    ("backend", "where", "settled"),
    [
        ("CPU", ("linux", "x86_64"), ["AVX2"]),
        ("GPU", ("linux", "x86_64"), []),
        ("CPU", ("linux", "aarch64"), []),
        ("CPU", ("win32", "x86_64"), []),
    ],
)
def test_instructions_are_limited_on_cpu_alone(machine, monkeypatch, backend, where, settled):
    machine({"GPU": 1})
    limited = []
    monkeypatch.setattr(_compat, "limit_cpu_isa", limited.append)
    monkeypatch.setattr(sys, "platform", where[0])
    monkeypatch.setattr(device.platform, "machine", lambda: where[1])
    info = device.configure(backend, max_cpu_isa="AVX2")
    device.configure()
    assert (info.honoured, info.ignored) == (
        (("max_cpu_isa",), ()) if settled else ((), ("max_cpu_isa",))
    )
    assert limited == settled


def test_instructions_cannot_be_limited_after_a_kernel(machine, monkeypatch):
    fake = machine()
    monkeypatch.setattr(
        _compat, "limit_cpu_isa", lambda name: "a kernel has run. Call configure() in a new process"
    )
    monkeypatch.setattr(device, "_follows", lambda backend, setting: True)
    with pytest.raises(
        DeviceError, match="max_cpu_isa='AVX2' cannot be had: a kernel has run. Call .* process"
    ):
        device.configure("CPU", mode="GRAPH", max_cpu_isa="AVX2")
    assert fake.calls == [] and device.device_info().honoured == ()


def test_what_is_set_once_is_refused_before_anything_changes(machine):
    fake = machine({"Ascend": 1}, deterministic=False)
    fake.hf32 = {"matmul_allow_hf32": True}
    with pytest.raises(
        DeviceError, match=r"deterministic=True \(it is False\) and precision='highest'"
    ):
        device.configure("Ascend", deterministic=True, precision="highest", mode="GRAPH")
    assert fake.calls == []
    assert device.configure("Ascend", deterministic=False, precision="high").deterministic is False


def test_refusals_of_mindspore_become_ours(machine, monkeypatch):
    machine()

    def refuse(backend):
        raise RuntimeError("The runtime has been initialized")

    monkeypatch.setattr(ms, "set_device", refuse)
    with pytest.raises(DeviceError, match="runtime has been initialized.*new process"):
        device.configure("CPU")


@pytest.mark.parametrize(("mode", "constant"), [("GRAPH", 0), ("PYNATIVE", 1), (0, 0), (1, 1)])
def test_modes_and_settings_are_remembered(machine, mode, constant):
    fake = machine()
    info = device.configure(mode=mode, jit_level="O1", deterministic=True)
    assert ("mode", constant) in fake.calls
    assert info == device.device_info() == device.configure()
    assert (info.mode, info.jit_level, info.deterministic) == (
        ("GRAPH", "PYNATIVE")[constant],
        "O1",
        True,
    )
    assert info.honoured == ("mode", "jit_level", "deterministic")
    assert device.jit_level() == "O1"
    assert info.mindspore == ms.__version__ and "backend='CPU'" in repr(info)


# --- this machine ---------------------------------------------------------------------------------


def test_available_devices_end_with_cpu_and_are_quick_to_ask_again():
    assert device.available_devices()[-1] == "CPU"
    start = time.perf_counter()
    device.available_devices()
    assert time.perf_counter() - start < 0.1


def test_the_probe_runs_a_kernel():
    assert device._run_kernel("CPU", 0) is None
    assert device._run_kernel("CPU", 1) == "its devices are numbered 0 to 0"


def test_a_probe_that_crashes_or_hangs_is_a_reason(monkeypatch):
    run = device._run_kernel.__wrapped__
    monkeypatch.setattr(device, "PROBE", "import os; os.abort()")
    assert "died with status -6" in run("GPU", 0)
    monkeypatch.setattr(device, "PROBE", "pass")
    assert "said nothing" in run("GPU", 0)
    monkeypatch.setattr(device, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(device, "PROBE_SECONDS", 0.5)
    assert "did not finish within 0.5 s" in run("GPU", 0)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "did not start" in run("GPU", 0)


def test_the_probe_does_not_join_the_cluster_of_its_parent(monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setattr(
        device, "PROBE", "import os; print('usable' if 'MS_ROLE' not in os.environ else 'joined')"
    )
    assert device._run_kernel.__wrapped__("GPU", 0) is None


def in_new_process(code, folder):
    # pytest-xdist's workers inherit the wish that importing the package leaves for oneDNN
    inherited = {
        name: value
        for name, value in os.environ.items()
        if (name, value) != ("ONEDNN_MAX_CPU_ISA", "AVX2")
    }
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT)},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return child.stdout.strip().splitlines()


REAL = """
import mindspore as ms
from mindspore_hessian.device import configure, device_info
print(device_info().deterministic)
info = configure("CPU", mode="GRAPH", deterministic=True)
(ms.Tensor([1.0]) + 1).asnumpy()
print(info == device_info() == configure("CPU", 0, deterministic=True) == configure())
print(ms.get_context("mode"), ms.get_context("deterministic"), ms.get_current_device())
"""
AFTER_A_KERNEL = """
import mindspore as ms
from mindspore_hessian import device
(ms.Tensor([1.0]) + 1).asnumpy()
print(device.configure("CPU").backend, device.configure(deterministic=True).deterministic)
for asked in ({"device": "GPU"}, {"device_id": 1}, {"deterministic": False}):
    try:
        device.configure(**asked)
    except device.DeviceError as error:
        print(str(error)[:40])
"""


PINNED = """
import os
from mindspore_hessian import configure
def cores():
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as file:
            name = file.read().strip()
        if name.startswith(("ActorThread", "KernelThread")):
            found[name] = os.sched_getaffinity(int(task))
    return list(found.values())
everywhere = os.sched_getaffinity(0)
configure("CPU", pin_threads=True)
pinned = cores()
print(all(len(place) == 1 for place in pinned), set().union(*pinned) == everywhere or len(pinned) < len(everywhere),
      len(pinned) > 1 or len(everywhere) == 1, os.sched_getaffinity(0) == everywhere)
configure(pin_threads=False)
print(all(place == everywhere for place in cores()))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_compute_threads_are_pinned_and_let_go(tmp_path):
    assert in_new_process(PINNED, tmp_path) == ["True True True True", "True"]


CONVOLUTION = """
import os
os.environ["ONEDNN_VERBOSE"] = os.environ["DNNL_VERBOSE"] = "1"
import mindspore as ms
import numpy as np
from mindspore_hessian import hvp
from mindspore_hessian.device import configure, device_info
{settings}
def f(x, w):
    return (ms.ops.conv2d(x, w, pad_mode="pad", padding=1) ** 2).sum()
x, w = np.random.default_rng(0).standard_normal((2, 1, 1, 8, 8)).astype(np.float32)
kernel = np.zeros((1, 1, 3, 3), np.float32)
kernel[0, 0, 1, 1] = 3
inputs = ms.Tensor(x), ms.Tensor(kernel)
found = hvp(f, inputs, (ms.Tensor(w), ms.Tensor(kernel * 0)))[0].asnumpy()
print(np.abs(found - 18 * w).max() < 1e-4, device_info().cpu_isa)
"""
TOO_LATE = """
import warnings
import mindspore as ms
import numpy as np
x = ms.Tensor(np.ones((2, 2), np.float32))
ms.ops.matmul(x, x).asnumpy()
from mindspore_hessian import HessianOperator, hvp
from mindspore_hessian.device import DeviceError, configure, device_info
try:
    configure("CPU", max_cpu_isa="AVX2")
except DeviceError as error:
    print(error)
def f(x):
    return (ms.ops.conv2d(x, ms.ops.ones((1, 1, 2, 2))) ** 2).sum()
x = ms.Tensor(np.ones((1, 1, 4, 4), np.float32))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for y in (x, x[:, :, 1:]):
        hvp(f, y, y)
print(sum("convolutions run about 100 times slower" in str(warning.message) for warning in caught))
print(device_info().cpu_isa)
net = ms.nn.SequentialCell(ms.nn.Conv2d(1, 1, 2, pad_mode="valid"), ms.nn.Flatten(), ms.nn.Dense(9, 1))
op = HessianOperator(net, ms.nn.MSELoss(), (x, ms.Tensor([[1.0]])), check_deterministic=False)
print("convolutions run about 100 times slower" in str(op.plan()))
"""
NARROW = """
import mindspore_hessian as mh
import mindspore as ms
import numpy as np
x, y = ms.Tensor(np.ones((2, 1, 4, 4), np.float32)), ms.Tensor([[1.0], [2.0]])
flat = ms.nn.SequentialCell(ms.nn.Flatten(), ms.nn.Dense(16, 1))
net = ms.nn.SequentialCell(ms.nn.Conv2d(1, 1, 2, pad_mode="valid"), ms.nn.Flatten(), ms.nn.Dense(9, 1))
for net in (flat, net):
    op = mh.HessianOperator(net, ms.nn.MSELoss(), (x, y), check_deterministic=False)
    print("MINDSPORE_HESSIAN_CPU_ISA=ALL" in str(op.plan()))
"""
AVX512 = sys.platform == "linux" and "avx512f" in Path("/proc/cpuinfo").read_text()
SLOW = _compat.MS_VERSION >= (2, 9)  # these bring oneDNN 3


@pytest.mark.skipif(not AVX512, reason="AVX-512 on Linux only")
@pytest.mark.parametrize(
    ("settings", "isa"),
    [
        ("", "AVX2" if SLOW else "ALL"),
        ('configure("CPU", max_cpu_isa="AVX2")', "AVX2"),
        ('configure(max_cpu_isa="ALL")', "ALL"),
    ],
    ids=["as it is imported", "asked for", "all asked for"],
)
def test_no_convolution_takes_the_slow_way(tmp_path, settings, isa):
    (tmp_path / "convolve.py").write_text(
        CONVOLUTION.format(settings=settings)
    )  # MindSpore compiles what is in a file
    *log, last = in_new_process(
        "import convolve", tmp_path
    )  # jit_uni_ncsp nests the reference loop for most shapes
    kernels = [line for line in log if ",exec," in line and ",convolution," in line]
    assert last == f"True {isa}"
    assert kernels and any("jit_uni_ncsp" in line for line in kernels) == (SLOW and isa == "ALL")


@pytest.mark.parametrize("variable", ["MINDSPORE_HESSIAN_CPU_ISA", "ONEDNN_MAX_CPU_ISA"])
def test_the_environment_keeps_the_instructions_as_they_are(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "ALL")
    assert in_new_process(
        "import mindspore_hessian as mh; print(mh.device_info().cpu_isa)", tmp_path
    ) == ["ALL"]


@pytest.mark.skipif(not (AVX512 and SLOW), reason="AVX-512 on Linux, MindSpore 2.9 or later")
def test_instructions_are_chosen_at_the_first_kernel(tmp_path):
    (tmp_path / "late.py").write_text(TOO_LATE)
    line, count, isa, planned = in_new_process("import late", tmp_path)
    assert (isa, count, planned) == ("ALL", "1", "True")
    assert line.startswith(
        "max_cpu_isa='AVX2' cannot be had: a kernel has run, and oneDNN takes it once per process."
    )


@pytest.mark.skipif(not (AVX512 and SLOW), reason="AVX-512 on Linux, MindSpore 2.9 or later")
@pytest.mark.parametrize("variable", ["", "ALL"])
def test_a_plan_without_convolutions_says_what_they_cost(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("MINDSPORE_HESSIAN_CPU_ISA", variable)
    assert in_new_process(NARROW, tmp_path) == [str(not variable), "False"]


def test_real_settings(tmp_path):
    assert in_new_process(REAL, tmp_path) == ["False", "True", "0 ON ('CPU', 0)"]


def test_after_a_kernel_ran(tmp_path):
    assert in_new_process(AFTER_A_KERNEL, tmp_path) == [
        "CPU True",
        "GPU:0 was asked for, but this process al",
        "CPU:1 was asked for, but this process al",
        "This process can no longer take determin",
    ]


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("GPU", marks=pytest.mark.needs_gpu),
        pytest.param("Ascend", marks=pytest.mark.needs_ascend),
    ],
)
def test_a_real_accelerator(backend, tmp_path):
    code = f"""
from mindspore_hessian.device import available_devices, configure
import mindspore as ms
info = configure("{backend}", 0, precision="highest", deterministic=True)
x = ms.ops.ones((4, 4), ms.float32)
print(info.backend, info.precision, ms.ops.matmul(x, x).sum().asnumpy(), "{backend}" in available_devices())
"""
    assert in_new_process(code, tmp_path) == [f"{backend} highest 64.0 True"]
