"""What unequal shapes cost MindSpore's kernels for CPU: milliseconds of a kernel with operands of one
shape, with a row for the second, and with the row copied to that shape before it, and the MiB that
the second graph keeps; copies by BroadcastTo and by Tile; and sums of tensors of one shape by Add and by AddN.

Usage: python ci/bench/shapes.py
"""

from __future__ import annotations

import time
from statistics import median

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from serve import memory

import mindspore_hessian  # noqa: F401 -- with its settings

ROWS, COLUMNS, CALLS = 1024, 2048, 15
NAMES = ("Add", "Sub", "Mul", "RealDiv", "Maximum", "Minimum", "Greater", "Equal")
first = ops.Slice()  # keeps the transfer of the result out of the times


def measured(function, *tensors) -> tuple[float, float]:
    """Milliseconds of a call, and the memory that the first one takes and keeps."""
    graph = ms.jit(function)
    before = memory("VmRSS")
    graph(*tensors).asnumpy()
    kept, times = memory("VmRSS") - before, []
    for _ in range(CALLS):
        start = time.perf_counter()
        graph(*tensors).asnumpy()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times), kept


def kernels(dtype: str) -> None:
    whole, other, row = (
        Tensor((np.random.rand(*shape) + 0.5).astype(dtype))
        for shape in ((ROWS, COLUMNS), (ROWS, COLUMNS), (1, COLUMNS))
    )
    for name in NAMES:
        prim = getattr(ops, name)()

        def apply(x, y, prim=prim):
            return first(prim(x, y), (0, 0), (1, 1))

        def copied(x, y, prim=prim):
            return first(prim(x, ops.Tile()(y, (ROWS, 1))), (0, 0), (1, 1))

        measured(apply, whole, other)  # memory that all kernels share
        same, unequal, by_copy = (
            measured(apply, whole, other),
            measured(apply, whole, row),
            measured(copied, whole, row),
        )
        print(
            f"| {name}, {dtype} | {same[0]:.1f} | {unequal[0]:.1f} | {by_copy[0]:.1f} | {unequal[1]:.0f} |"
        )


def copies() -> None:
    for shape, small in (
        ((64, 256, 128), (1, 256, 128)),
        ((64, 256, 128), (64, 1, 128)),
        ((64, 256, 128), (64, 256, 1)),
        ((1024, 2048), (1, 2048)),
    ):
        x = Tensor(np.random.rand(*small).astype(np.float32))
        times = tuple(long // short for long, short in zip(shape, small, strict=True))
        start, size = (0,) * len(shape), (1,) * len(shape)

        def broadcast(x, shape=shape, start=start, size=size):
            return first(ops.BroadcastTo(shape)(x), start, size)

        def tiled(x, times=times, start=start, size=size):
            return first(ops.Tile()(x, times), start, size)

        print(
            f"| {small} to {shape} | {measured(broadcast, x)[0]:.2f} | {measured(tiled, x)[0]:.2f} |"
        )


def sums() -> None:
    """Microseconds of one of twenty sums in a row, which overhead does not hide."""
    total = ops.AddN()

    def by_add(x, y):
        for _ in range(20):
            x = ops.Add()(x, y)
        return first(x, (0, 0), (1, 1))

    def by_add_n(x, y):
        for _ in range(20):
            x = total((x, y))
        return first(x, (0, 0), (1, 1))

    for dtype in ("float32", "float64"):
        for rows in (16, 64, 512):
            x, y = (Tensor(np.random.rand(rows, COLUMNS).astype(dtype)) for _ in range(2))
            times = (50 * measured(sum_of, x, y)[0] for sum_of in (by_add, by_add_n))
            print(
                f"| {dtype}, {rows} x {COLUMNS} | "
                + " | ".join(f"{one:.0f}" for one in times)
                + " |"
            )


if __name__ == "__main__":
    print("| kernel | equal, ms | unequal, ms | copied first, ms | kept where unequal, MiB |")
    print("|---|---|---|---|---|")
    for dtype in ("float32", "float64"):
        kernels(dtype)
    print("\n| copy | BroadcastTo, ms | Tile, ms |\n|---|---|---|")
    copies()
    print("\n| sum of two | Add, us | AddN, us |\n|---|---|---|")
    sums()
