"""Make tests/golden/calls.npz: what torch says of the calls in tests/rules/calls/*.txt, in float64.

Usage: python ci/golden/make_calls.py      (an environment with torch and numpy; MindSpore is not
needed)

For a call with output y and s = sum(w (y + y^2 / 2)), by the number of its line: value y, gradient,
hvp = H v and third = s'''[v, v], the last three of all differentiated inputs in one vector. A line
that torch cannot run is left out; whether torch's function of that name is the same function is
seen by its value.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "rules"))
import calls  # noqa: E402
import references  # noqa: E402

torch.set_default_dtype(torch.float64)
PLACES = (torch, F, torch.special, torch.linalg)


def layer(call):
    """A function of the inputs, and the layer's weights set."""
    built, rest = calls.split_layer(call.text.removeprefix("mint."))
    net = eval(built, {"nn": nn})  # noqa: S307 -- the table is ours
    if ".train()" not in built:
        net.eval()
    weights = [(name.split("_l")[0], weight) for name, weight in net.named_parameters()]
    if isinstance(net, nn.RNNBase):  # MindSpore has them by kind, then by layer
        weights.sort(
            key=lambda pair: ("weight_ih", "weight_hh", "bias_ih", "bias_hh").index(pair[0])
        )
    for number, (_, weight) in enumerate(weights):
        weight.data = torch.tensor(calls.parameter(number, tuple(weight.shape)))
    return lambda inputs: eval(f"net{rest}", {"net": net, **inputs})  # noqa: S307


def candidates(call):
    if "torch" in call.more:
        names = {**vars(references), "torch": torch, "F": F}
        yield lambda inputs: eval(call.more["torch"], names, inputs)  # noqa: S307
    elif call.spaces[0] in calls.LAYERS:
        yield layer(call)
    elif call.spaces == ("python",) or call.text.startswith("x."):
        yield lambda inputs: eval(call.text, {}, inputs)  # noqa: S307
    else:
        for place in PLACES:
            if hasattr(place, call.head):
                yield lambda inputs, place=place: eval(
                    f"place.{call.text}", {"place": place}, inputs
                )  # noqa: S307
        yield lambda inputs: eval(call.source("Tensor"), {}, inputs)  # noqa: S307


def derivatives(call, f):
    inputs = {
        name: torch.tensor(value.astype(np.int64) if value.dtype == np.int32 else value)
        for name, value in call.inputs.items()
    }
    free = tuple(inputs[name] for name in call.free)
    vectors = tuple(torch.tensor(vector) for vector in call.vectors().values())
    for x in free:
        x.requires_grad_()
    y = f(inputs)
    w = torch.tensor(calls.weight(tuple(y.shape)))
    s = (w * (y + 0.5 * y * y)).sum()

    def product(scalar):
        gradient = (
            torch.autograd.grad(scalar, free, create_graph=True, materialize_grads=True)
            if scalar.requires_grad
            else [torch.zeros_like(x) for x in free]
        )
        return gradient, sum((g * v).sum() for g, v in zip(gradient, vectors, strict=True))

    gradient, slope = product(s)
    hvp, curve = product(slope)
    third, _ = product(curve)

    def flat(parts):
        return torch.cat([part.detach().reshape(-1) for part in parts]).numpy()

    return {
        "value": y.detach().numpy(),
        "gradient": flat(gradient),
        "hvp": flat(hvp),
        "third": flat(third),
    }


def main():
    out, missing = {}, []
    for call in calls.calls():
        problem = "no function of this name"
        if "refused" in call.more:
            continue
        try:
            functions = list(candidates(call))
        except Exception as error:
            functions, problem = [], str(error)
        for f in functions:
            try:
                with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                    found = derivatives(call, f)
            except Exception as error:
                if "torch" in call.more:
                    raise RuntimeError(call.line) from error
                problem = f"{type(error).__name__} {error}"
                continue
            out |= {f"{call.key}/{name}": values for name, values in found.items()}
            break
        else:
            missing.append(f"{call.line}: {problem}".splitlines()[0][:150])
    np.savez_compressed(calls.GOLDEN, **out)
    print("\n".join(missing))
    print(f"{len(out) // 4} of {len(calls.calls())} lines")


if __name__ == "__main__":
    main()
