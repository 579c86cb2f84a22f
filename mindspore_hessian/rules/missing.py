"""What stands in for a batching rule that is missing. Most primitives without one meet no batch:
they compute the primal values, which a Hessian does not batch."""

from __future__ import annotations

from collections.abc import Callable

from mindspore import ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.kit import dims_of, front, primitive, tensors_of, unpaired


def _opaque(name: str, prim) -> bool:
    """A primitive that MindSpore hands over by name would lose its attributes, and a view its
    token; names in lower case, and the environments of control flow, are the compiler's own."""
    return (
        name[0].islower()
        or name.startswith("Environ")
        or name.endswith("View")
        or (isinstance(prim, str) and _compat.takes_attributes(name))
    )


def unbatched_only(name: str, asked: dict[str, bool]) -> Callable:
    """A rule for what is not batched; where something is, `asked` says that one is missing, and
    compiling ends.
    """

    def refuse():
        asked[name] = False
        raise NotImplementedError(f"primitive {name} has no batching rule")

    def check(dims):
        if any(dim is not None for dim in dims):
            refuse()
        return True

    checked = constexpr(check)

    def getter(prim, axis_size):
        if _opaque(name, prim):
            refuse()
        prim = primitive(prim)

        def rule(*pairs):
            if checked(dims_of(pairs)):
                return unpaired(prim(*tensors_of(pairs)))
            return None

        return rule

    return getter


def unrolled(name: str, asked: dict[str, bool]) -> Callable:
    """A rule that computes sample after sample, and then notes in `asked` that one is missing."""

    def note(dims):
        batched = any(dim is not None for dim in dims)
        if batched:
            asked[name] = False
        return batched

    noted = constexpr(note)

    def getter(prim, axis_size):
        if _opaque(name, prim):
            asked[name] = False
            return None  # MindSpore unrolls it
        prim = primitive(prim)

        def rule(*pairs):
            if not noted(dims_of(pairs)):
                return unpaired(prim(*tensors_of(pairs)))
            samples = ()
            for number in range(axis_size):
                inputs = tuple([x if dim is None else front(x, dim)[number] for x, dim in pairs])
                samples = samples + (prim(*inputs),)
            if isinstance(samples[0], tuple):
                outs = ()
                for k in range(len(samples[0])):
                    outs = outs + ((ops.stack([one[k] for one in samples]), 0),)
                return outs  # (a list in the place of a tuple would not be seen to be carried)
            return ops.stack(samples), 0

        return rule

    return getter
