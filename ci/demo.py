"""This library on real data: train a small convolutional network on scikit-learn's digits, look at
the second derivatives of its loss, check them against differences of its gradient, and time them
against MindSpore's tutorial."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import demo_network  # first: it silences MindSpore's log
import mindspore as ms
import numpy as np
from demo_network import distance, recipe
from mindspore import nn, ops
from tqdm import tqdm

import mindspore_hessian as mh

SPLIT = 1500  # digits to train on; the others are for the test
EPOCHS, BATCH = 10, 50
STEP = 1e-3  # of the central differences: float32 leaves them three to four digits
rng = np.random.default_rng(0)


def main() -> None:
    mh.configure()  # the best device that is here
    ms.set_seed(0)
    images, labels = demo_network.data()
    order = rng.permutation(len(images))
    images, labels = images[order], labels[order]
    net, cross_entropy = demo_network.Network(), nn.CrossEntropyLoss()

    def loss(images, labels):
        return cross_entropy(net(images), labels)

    train(net, loss, images[:SPLIT], labels[:SPLIT])
    guess = net(ms.Tensor(images)).asnumpy().argmax(1)
    right = guess[SPLIT:] == labels[SPLIT:]
    print(f"accuracy on {right.size} digits not trained on: {right.mean():.1%}")

    chosen = SPLIT + int(
        right.argmin()
    )  # one that it gets wrong: a confident answer has next to no curvature
    title = f"one digit: {labels[chosen]}, taken for {guess[chosen]}"
    pixels(
        loss,
        ms.Tensor(images[chosen : chosen + 1]),
        ms.Tensor(labels[chosen : chosen + 1]),
        title,
        net,
    )
    spectrum(net, loss, images[:SPLIT], labels[:SPLIT])


def train(net, loss, images, labels) -> None:
    optimizer = nn.Adam(net.trainable_params(), 1e-2)
    value_and_grad = ms.value_and_grad(loss, None, optimizer.parameters)

    @ms.jit
    def step(images, labels):
        value, gradients = value_and_grad(images, labels)
        optimizer(gradients)
        return value

    batches = len(images) // BATCH
    with tqdm(total=EPOCHS * batches, desc="training", ncols=100) as bar:
        for _ in range(EPOCHS):
            for batch in np.split(rng.permutation(len(images)), batches):
                value = step(ms.Tensor(images[batch]), ms.Tensor(labels[batch]))
                bar.update()
            bar.set_postfix(loss=f"{value.asnumpy():.3f}")


def pixels(loss, image, label, title, net) -> None:
    """Second derivatives of the loss with respect to the pixels of one digit."""

    def f(x):
        return loss(x, label)

    print(f"\nHessian of the loss with respect to the 64 pixels of {title}")
    hess_fn = mh.hessian(f)
    block, first = timed(lambda: hess_fn(image))
    _, again = timed(lambda: hess_fn(image), 20)
    h = block.reshape(64, 64)
    eigenvalues = np.linalg.eigvalsh((h + h.T) / 2)
    print(
        f"  shape              {block.shape}\n"
        f"  time               {first:.1f} s compiling included, then {again * 1e3:.1f} ms\n"
        f"  symmetry error     {distance(h.T, h):.1e}\n"
        f"  eigenvalues        {eigenvalues[0]:.4f} to {eigenvalues[-1]:.4f}\n"
        f"  entries equal to 0 {np.mean(h == 0):.1%}"
    )

    print("\nHessian-vector product for the same digit")
    v = rng.standard_normal(image.shape).astype(np.float32)
    vector, gradient = ms.Tensor(v), ms.grad(f)
    ends = [gradient(image + ms.Tensor(sign * STEP * v)).asnumpy().copy() for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * STEP)
    mh.clear_cache()
    ours, first_ours = timed(lambda: mh.hvp(f, image, vector))
    _, call_ours = timed(lambda: mh.hvp(f, image, vector), 100)
    compilations = mh.cache_info().misses
    theirs, first_theirs = timed(lambda: recipe(f, image, vector))
    _, call_theirs = timed(lambda: recipe(f, image, vector), 3)
    print(
        f"  {'':<24}relative error   first call   next calls\n"
        f"  {'hvp':<24}{distance(ours, expected):<17.1e}{first_ours:<4.2f} s       "
        f"{call_ours * 1e3:.1f} ms\n"
        f"  {'jvp(grad(f), x, v)':<24}{distance(theirs, expected):<17.1e}{first_theirs:<4.2f} s    "
        "   "
        f"{call_theirs * 1e3:.0f} ms\n"
        "  Errors are against central differences of the gradient; the two agree to "
        f"{distance(theirs, ours):.1e}.\n"
        f"  hvp compiled {compilations} time in 101 calls; the tutorial's recipe compiles at every "
        "call and takes "
        f"{call_theirs / call_ours:.0f} times as long.\n"
        "  The recipe in MindSpore alone, without the derivative rules that this library brings:"
    )
    print(*(f"    {line}" for line in recipe_alone(net, image, label, v, ours)), sep="\n")


def recipe_alone(net, image, label, v, expected) -> list[str]:
    """What demo_network.py prints in a process without this library."""
    # the library sets this for its rules; MindSpore without them would obey it and drop terms
    environment = {
        name: value for name, value in os.environ.items() if name != "MS_DEV_USE_PY_BPROP"
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, arrays = Path(folder, "network.ckpt"), Path(folder, "digit.npz")
        ms.save_checkpoint(net, str(checkpoint))
        np.savez(arrays, x=image.asnumpy(), label=label.asnumpy(), v=v, expected=expected)
        run = subprocess.run(
            [sys.executable, demo_network.__file__, checkpoint, arrays],
            cwd=folder,
            check=True,
            env=environment,
            capture_output=True,
            text=True,
        )
    return run.stdout.splitlines()


def spectrum(net, loss, images, labels) -> None:
    """What the Hessian of the loss on the training digits, with respect to all weights, says."""
    data = [
        (ms.Tensor(images[i : i + 500]), ms.Tensor(labels[i : i + 500]))
        for i in range(0, len(images), 500)
    ]
    op, first = wall(lambda: mh.HessianOperator(net, nn.CrossEntropyLoss(), data))
    print(
        f"\nHessian of the loss over {op.num_data} digits with respect to all {op.shape[0]} weights"
    )
    v = rng.standard_normal(op.shape[0]).astype(np.float32)
    v /= np.linalg.norm(v)
    product, seconds = wall(lambda: op @ v)
    expected = central_difference(
        loss, ms.Tensor(images), ms.Tensor(labels), net.trainable_params(), v
    )
    _, gradient = wall(op.gradient_and_loss)
    top, time_top = wall(lambda: mh.eigsh(op, k=3, tol=1e-4))
    trace, time_trace = wall(lambda: mh.trace(op, method="xtrace", max_products=96))
    values = ", ".join(f"{value:.3f}" for value in top.eigenvalues)
    print(
        f"  operator           {first:.1f} s: compiled, two passes over the data agree, products "
        "are symmetric\n"
        f"  relative error     {distance(product, expected):.1e} of a product, against central "
        "differences of the "
        f"gradient\n"
        f"  time               {seconds * 1e3:.0f} ms a product: {seconds / gradient:.1f} "
        "gradients\n"
        f"  largest eigenvalues {values}; residuals up to {top.residuals.max():.0e}, "
        f"{top.num_products} products, "
        f"{time_top:.1f} s\n"
        f"  trace              {trace.value:.2f} +- {trace.standard_error:.2f}, "
        f"{trace.num_products} products, "
        f"{time_trace:.1f} "
        f"s\n\n{mh.layer_report(op, num_probes=16)}\n\n{mh.diagnose(op, 1e-2, max_products=60)}"
    )


def wall(call) -> tuple:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def central_difference(loss, images, labels, weights, v) -> np.ndarray:
    """H v from the gradient at the weights moved along v, both ways."""
    gradient = ms.jit(ms.grad(loss, None, weights))
    before = flat(weights)
    step, ends = STEP / np.abs(v).max(), []
    for position in (before + step * v, before - step * v, before):
        for weight, value in zip(weights, like(position, weights), strict=True):
            ops.assign(weight, value)
        ends.append(flat(gradient(images, labels)))
    return (ends[0] - ends[1]) / (2 * step)


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensor.asnumpy().ravel() for tensor in tensors])


def like(vector: np.ndarray, weights) -> tuple[ms.Tensor, ...]:
    """The flat vector as one Tensor a weight."""
    parts = np.split(vector, np.cumsum([weight.size for weight in weights])[:-1])
    return tuple(
        ms.Tensor(part.reshape(weight.shape)) for part, weight in zip(parts, weights, strict=True)
    )


def timed(function, times: int = 1) -> tuple[np.ndarray, float]:
    """The result of the last call, and the median of the seconds a call."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = function().asnumpy()
        seconds.append(time.perf_counter() - start)
    return result.copy(), float(np.median(seconds))


if __name__ == "__main__":
    main()
