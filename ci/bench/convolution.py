"""Why convolutions are slow in MindSpore 2.9 and 2.10 on a CPU with AVX-512, with or without this
library, and what `configure(max_cpu_isa="AVX2")` changes: the time of one 3 x 3 convolution (64
channels, 32 x 32, batch 8), and which kernel oneDNN says it is; and that of one product of 1024 x
1024 matrices, which the setting can slow down."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

ALONE, LIMITED = "--alone", "--limited"


def measure() -> None:
    """Median and range of ten calls, in a process of its own: oneDNN reads its variable once."""
    from mindspore import Tensor, jit, ops

    if LIMITED in sys.argv:
        from mindspore_hessian import configure

        configure("CPU", max_cpu_isa="AVX2")

    def convolve(x, w):
        return ops.conv2d(x, w, pad_mode="pad", padding=1)

    def multiply(x, w):
        return ops.matmul(x, w)

    random = np.random.default_rng(0)
    for name, function, shapes in (
        ("convolution", convolve, ((8, 64, 32, 32), (64, 64, 3, 3))),
        ("matrix product", multiply, ((1024, 1024), (1024, 1024))),
    ):
        x, w = (Tensor(random.standard_normal(shape).astype(np.float32)) for shape in shapes)
        compiled, seconds = jit(function), []
        for _ in range(11):
            start = time.perf_counter()
            compiled(x, w).asnumpy()
            seconds.append(time.perf_counter() - start)
        low, middle, high = (
            1e3 * part for part in (min(seconds[1:]), np.median(seconds[1:]), max(seconds[1:]))
        )
        print(f"one {name}: {middle:.0f} ms, from {low:.0f} to {high:.0f}")


def main() -> None:
    environment = {**os.environ, "GLOG_v": "3", "ONEDNN_VERBOSE": "1", "DNNL_VERBOSE": "1"}
    for title, more in (("as it is", []), ('configure("CPU", max_cpu_isa="AVX2")', [LIMITED])):
        lines = subprocess.run(
            [sys.executable, __file__, ALONE, *more],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        kernels = {
            line.split(",")[line.split(",").index("convolution") + 1]
            for line in lines
            if ",convolution," in line
        }
        print(*(f"{title}: {line}" for line in lines if line.startswith("one ")), sep="\n")
        print(f"kernel of oneDNN: {', '.join(sorted(kernels)) or 'not told'}")


if __name__ == "__main__":
    measure() if ALONE in sys.argv else main()
