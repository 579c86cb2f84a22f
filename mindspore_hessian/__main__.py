"""``python -m mindspore_hessian``: what is installed, which devices work, and whether an HVP comes
out right.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import platform
import sys
import time
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np

from mindspore_hessian import device, rules
from mindspore_hessian._errors import DeviceError, HessianError
from mindspore_hessian.core.captures import Captures
from mindspore_hessian.core.space import FLOATS

# dtype -> largest relative error of the self-check
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
HONOURED = {
    "Ascend": "device_id, mode, jit_level, deterministic, precision (HF32); no float64 matrix products",
    "GPU": "device_id, mode, jit_level, deterministic, precision (TF32)",
    "CPU": "mode, jit_level, deterministic, pin_threads, max_cpu_isa; precision is always float32; convolutions have "
    "no float64",
}


def info(arguments: argparse.Namespace) -> int:
    """Print versions, devices and settings, then check an HVP. 0 where it is right, 1 where it is
    not.
    """
    from mindspore_hessian import __version__

    print(f"mindspore_hessian {__version__}")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, MindSpore {ms.__version__}")
    print("\ndevices")
    for backend in device.BACKENDS:
        reason = device.why_unusable(backend)
        print(
            f"  {backend:<8}{f'not usable: {reason}' if reason else f'usable; honours {HONOURED[backend]}'}"
        )
    try:
        chosen = device.configure(arguments.device)
    except DeviceError as error:
        print(f"\n{error}")
        return 1
    print(
        f"\nchosen: {chosen.backend}:{chosen.device_id}, mode {chosen.mode}, precision "
        f"{chosen.precision}, deterministic {chosen.deterministic}"
    )
    if chosen.backend == "CPU" and device.convolutions_are_slow():
        print(
            "convolutions: "
            + (
                "fast, as importing this package keeps oneDNN to AVX2; without them, "
                "MINDSPORE_HESSIAN_CPU_ISA=ALL makes matrix products faster"
                if chosen.cpu_isa == "AVX2"
                else 'about 100 times slower than they can be here; max_cpu_isa="AVX2" of configure() would mend that'
            )
        )
    print(
        f"rules: {sum(row.active == 'ours' for row in rules.status())} of this library are "
        "installed"
    )
    print("\nself-check: the HVP of sum(x sin x) against (2 cos x - x sin x) v")
    dtypes = ["float32"] if chosen.backend == "Ascend" else list(TOLERANCES)
    results = [self_check(dtype) for dtype in dtypes]  # all of them, also after a failure
    return 0 if all(results) else 1


def wave(x):
    return (x * x.sin()).sum()


def self_check(dtype: str) -> bool:
    """Print and return whether an HVP is right."""
    from mindspore_hessian import (
        hvp,
    )  # here, so that a broken transform does not keep the report from being printed

    x, v = np.linspace(-2, 2, 64), np.linspace(1, 3, 64)
    expected = (2 * np.cos(x) - x * np.sin(x)) * v
    inputs, vectors = ms.Tensor(x.astype(dtype)), ms.Tensor(v.astype(dtype))
    start = time.perf_counter()
    try:
        found = hvp(wave, inputs, vectors).asnumpy().copy()
        first = time.perf_counter() - start
        hvp(wave, inputs, vectors).asnumpy()
        second = time.perf_counter() - start - first
    except Exception as error:  # whatever it is, the report says it and the exit status tells
        print(f"  {dtype}  FAILED  {type(error).__name__}: {error}")
        return False
    distance = np.abs(found - expected).max() / np.abs(expected).max()
    right = bool(distance < TOLERANCES[dtype])  # False for NaN
    print(
        f"  {dtype}  {'right' if right else 'WRONG'}  relative error {distance:.1e} (limit "
        f"{TOLERANCES[dtype]:.0e}), "
        f"first call {first:.2f} s, then {second * 1e3:.1f} ms"
    )
    return right


def audit(arguments: argparse.Namespace) -> int:
    """Print which rules the second derivative of a function needs. 0 where all are there, else
    1.
    """
    from mindspore_hessian.tools.audit import audit as report_on

    module, _, name = arguments.function.partition(":")
    try:
        fn = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        inputs = tuple(
            _drawn(shape, arguments.dtype, seed) for seed, shape in enumerate(arguments.shape)
        )
        differentiated = tuple(number for number, x in enumerate(inputs) if x.dtype in FLOATS)
        weights = (
            [p for p in Captures(fn).parameters.values() if p.requires_grad]
            if arguments.weights
            else None
        )
        report = report_on(fn, inputs, None if weights else differentiated, weights=weights)
    except (ImportError, AttributeError, TypeError, ValueError, HessianError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    print(report)
    return 1 if report.missing or not report.compiles.hvp else 0


def _drawn(text: str, dtype: str, seed: int) -> ms.Tensor:
    """A Tensor of a shape such as ``3,4``, standard normal; zeros for an integer type, as in
    ``8:int32``.
    """
    shape, _, own = text.partition(":")
    kind = getattr(ms, own or dtype)
    numbers = np.random.default_rng(seed).standard_normal(
        [int(size) for size in shape.split(",") if size]
    )
    return ms.Tensor(numbers if kind in FLOATS else np.zeros(numbers.shape)).astype(kind)


# name -> what it does, what it runs, its options
Command = tuple[str, Callable[[argparse.Namespace], int], dict[str, dict]]
COMMANDS: dict[str, Command] = {
    "info": (
        "versions, devices, self-check (the default)",
        info,
        {
            "--device": {
                "choices": ("auto", *device.BACKENDS),
                "default": "auto",
                "help": "where the self-check runs",
            }
        },
    ),
    "audit": (
        "rules that a function's second derivative needs",
        audit,
        {
            "function": {
                "metavar": "module:function",
                "help": "a function that returns one number",
            },
            "--shape": {
                "action": "append",
                "default": [],
                "help": "of an input, such as 3,4, or 8:int32 for labels "
                "(zeros); repeat it for several inputs",
            },
            "--dtype": {
                "default": "float32",
                "help": "of the inputs, which are standard normal (float32)",
            },
            "--weights": {
                "action": "store_true",
                "help": "differentiate the trainable weights, not the inputs",
            },
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 where all is well, else 1."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m mindspore_hessian", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (help_text, run, options) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=run.__doc__)
        command.set_defaults(run=run)
        for option, settings in options.items():
            command.add_argument(option, **settings)
    # without a command: info
    named = bool(arguments) and (arguments[0] in COMMANDS or arguments[0] in ("-h", "--help"))
    chosen = parser.parse_args(arguments if named else ["info", *arguments])
    return chosen.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
