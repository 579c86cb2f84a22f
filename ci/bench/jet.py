"""The sixth derivative of a tanh network 1-32-32-1 at 1,000 points: ours, nested `mindspore.grad`,
and JAX's jets.

``python ci/bench/jet.py [python-with-jax]`` prints medians in milliseconds, rounds of all of them
in turn, and errors relative to float64 jets of JAX (or, without it, of ours).
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

ORDER, POINTS, ROUNDS, CALLS = 6, 1000, 3, 15
RANDOM = np.random.default_rng(0)
WEIGHTS = [RANDOM.normal(size=(m, n)) / m**0.5 for m, n in ((1, 32), (32, 32), (32, 1))]
BIASES = [RANDOM.normal(size=n) for n in (32, 32, 1)]
X = np.linspace(-2, 2, POINTS)[:, None]


def network(tanh, matmul, constant):
    """The network of a library."""
    weights, biases = [constant(w) for w in WEIGHTS], [constant(b) for b in BIASES]

    def net(x):
        x = tanh(matmul(x, weights[0]) + biases[0])
        x = tanh(matmul(x, weights[1]) + biases[1])
        return matmul(x, weights[2]) + biases[2]

    return net


def timed(call):
    """The times of some calls, in milliseconds."""
    out = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        out.append(1e3 * (time.perf_counter() - start))
    return out


def first(call):
    """The seconds of the first call, which compiles, and the result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def jax_calls(dtype):
    """What JAX does, as {name: call}."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import jet

    jax.config.update("jax_enable_x64", True)
    net, x = network(jnp.tanh, jnp.matmul, lambda w: jnp.asarray(w, dtype)), jnp.asarray(X, dtype)

    @jax.jit
    def sixth(x):
        one, zero = jnp.ones_like(x), jnp.zeros_like(x)
        return jet.jet(net, (x,), ((one, *[zero] * (ORDER - 1)),))[1][ORDER - 1]

    return {"jax.experimental.jet": lambda: np.asarray(sixth(x))}


def mindspore_calls(dtype):
    """`derivative`, called as it is and in a graph, and nested gradients."""
    import mindspore as ms
    from mindspore import Tensor, ops

    import mindspore_hessian as mh

    dtype = getattr(ms, dtype)
    net, x = network(ops.tanh, ops.matmul, lambda w: Tensor(w, dtype)), Tensor(X, dtype)
    ours, by_gradients = mh.derivative(net, ORDER), net
    inside = ms.jit(mh.derivative(net, ORDER))
    for _ in range(ORDER):
        by_gradients = ms.grad(summed(by_gradients))
    nested = ms.jit(by_gradients)
    return {
        "derivative": lambda: ours(x).asnumpy().copy(),
        "derivative in @jit": lambda: inside(x).asnumpy().copy(),
        "nested mindspore.grad": lambda: nested(x).asnumpy().copy(),
    }


def summed(f):
    """x -> sum f(x)."""

    def total(x):
        return f(x).sum()

    return total


def work(library):
    """A worker: each line read is a round; the times are written."""
    cases = {
        (name, dtype): call
        for dtype in ("float64", "float32")
        for name, call in (jax_calls if library == "jax" else mindspore_calls)(dtype).items()
    }
    found = {case: first(call) for case, call in cases.items()}
    print(
        repr(
            {case: (seconds, result.ravel().tolist()) for case, (seconds, result) in found.items()}
        ),
        flush=True,
    )
    for _ in sys.stdin:
        print(repr({case: timed(call) for case, call in cases.items()}), flush=True)


def answer(worker):
    """The next line of a worker that is its own (others are MindSpore's)."""
    while not (line := worker.stdout.readline()).startswith("{"):
        if not line:
            raise RuntimeError("a worker ended")
    return eval(line)  # noqa: S307 -- of our own worker


def main(other):
    """Run the workers in turn and print a table."""
    pythons = {"mindspore": sys.executable, **({"jax": other} if other else {})}
    workers = [
        subprocess.Popen(
            [python, __file__, "--work", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for library, python in pythons.items()
    ]
    firsts, times = {}, {}
    for worker in workers:
        firsts.update(answer(worker))
    for _ in range(ROUNDS):
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
            for case, some in answer(worker).items():
                times.setdefault(case, []).extend(some)
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    truth = np.array(
        firsts.get(("jax.experimental.jet", "float64"), firsts["derivative", "float64"])[1]
    )
    for case, some in times.items():
        seconds, result = firsts[case]
        error = np.abs(np.array(result) - truth).max() / np.abs(truth).max()
        print(
            f"{case[0]:24} {case[1]:8} {np.median(some):8.2f} ms   first call {seconds:6.1f} s   "
            f"error {error:.1e}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
