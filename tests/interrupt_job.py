"""Run by test_interrupt.py in a process of its own: Ctrl-C in the midst of long work, one line of
JSON a case.

``python interrupt_job.py CASE ...``: for each case, what it raised and what is not as it was
before. The last case may be "sleep", after which the process waits for a signal outside of our
work.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import threading
import time
import warnings

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

import mindspore_hessian as mh

warnings.simplefilter("ignore")
FOREVER, LIBC = 10**7, ctypes.CDLL(None)
random_numbers = np.random.RandomState(0)


def rows(count):
    return [
        tuple(Tensor(random_numbers.randn(32, size).astype(np.float32)) for size in (8, 3))
        for _ in range(count)
    ]


def network():
    return nn.SequentialCell(nn.Dense(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dense(32, 3))


plain, training = network(), network().set_train(True)
plain.set_train(False)
op = mh.HessianOperator(plain, nn.MSELoss(), rows(5))
monitor = mh.CurvatureMonitor(
    rows(2), training, nn.MSELoss(), metrics=("sharpness",), max_products=FOREVER, tol=1e-12
)
vector, point = (
    np.ones(op.shape[0], np.float32),
    Tensor(random_numbers.randn(50).astype(np.float32)),
)
known = op @ vector


def cube(x):
    return (x**3).sum()


class Slow:
    """Numpy only; MindSpore's handler is there all the same, since a kernel has run."""

    shape, dtype = (200, 200), np.dtype(np.float64)

    def __matmul__(self, block):
        time.sleep(0.02)
        return (
            np.arange(1.0, 201)[:, None] * block if block.ndim == 2 else np.arange(1.0, 201) * block
        )


def slow_data():
    class Data:
        def __iter__(self):
            for row in first:
                time.sleep(0.2)
                yield row

    first = rows(2)
    mh.HessianOperator(
        plain, nn.MSELoss(), Data(), check_deterministic=False, progress=True
    ) @ np.ones((op.shape[0], 2000), np.float32)


def compiling():
    while True:
        mh.clear_cache()
        op @ vector


def caught():
    """The user's own code swallows the exception: it comes all the same."""

    class Data:
        def __iter__(self):
            for row in rows(2):
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(0.6)
                yield row

    mh.HessianOperator(plain, nn.MSELoss(), Data(), num_data=64, reduction="mean")


CASES = {
    "trace": lambda: mh.trace(op, max_products=FOREVER, tol=1e-12),
    "trace with a bar": lambda: mh.trace(op, max_products=FOREVER, tol=1e-12, progress=True),
    "product": lambda: op @ np.ones((op.shape[0], 20000), np.float32),
    "gradient": lambda: [op.gradient_and_loss() for _ in range(FOREVER)],
    "transform": lambda: [mh.hvp(cube, point, point) for _ in range(FOREVER)],
    "compiling": compiling,
    "reading data": slow_data,
    "caught": caught,
    "monitor": lambda: [monitor.measure(1) for _ in range(FOREVER)],
    "diagnose": lambda: mh.diagnose(op, tol=1e-12, max_products=FOREVER),
    "report": lambda: mh.layer_report(op, num_probes=FOREVER),
    "plan": lambda: [op.plan() for _ in range(FOREVER)],
    "loss line": lambda: mh.plot.loss_line(op, vector, points=20001),
    "numpy": lambda: mh.eigsh(Slow(), k=20, tol=1e-14, max_products=FOREVER),
    "checkpoint": lambda: mh.trace(
        op, max_products=FOREVER, tol=1e-12, checkpoint=os.environ["CHECKPOINT"]
    ),
    "sleep": lambda: time.sleep(20),
}


def in_c(number):
    """The address of the handler in C."""
    action = ctypes.create_string_buffer(152)
    LIBC.sigaction(number, None, action)
    return int.from_bytes(action.raw[:8], "little")


def state():
    cells = [cell for net in (plain, training) for _, cell in net.cells_and_names()]
    return {
        "weights": [
            p.asnumpy().tobytes() for net in (plain, training) for p in net.get_parameters()
        ],
        "flags": [cell.training for cell in cells],
        "random": (
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            ms.get_rng_state().asnumpy().tobytes(),
        ),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "SIGINT in C": in_c(signal.SIGINT),
        "SIGTERM in C": in_c(signal.SIGTERM),
        "bars": len(tqdm._instances),
    }


def press(after):
    """Ctrl-C, and the time of it."""
    at = []

    def now():
        at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, now)
    timer.start()
    return timer, at


def judged(name, after):
    before = state()
    timer, at = press(after)
    try:
        CASES[name]()
        raised = "nothing"
    except BaseException as err:
        raised = type(err).__name__
    seconds = time.monotonic() - at[0] if at else -1.0
    if not at:  # it ended by itself
        timer.cancel()
    timer.join()
    now = state()
    return {
        "raised": raised,
        "changed": [key for key in before if before[key] != now[key]],
        "seconds": seconds,
        "next": bool(np.allclose(op @ vector, known, rtol=1e-5, atol=1e-6)),
    }


if __name__ == "__main__":
    for number, name in enumerate(sys.argv[1:]):
        print(json.dumps({"case": name, **judged(name, 0.25 + 0.1 * (number % 4))}), flush=True)
