"""The step of `KFAC`: two graphs, and between them, every so many steps, the inverses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_hessian import _compat
from mindspore_hessian._errors import FallbackWarning, warn
from mindspore_hessian.core.program import Function, Program
from mindspore_hessian.core.space import unraveled
from mindspore_hessian.operators import kernels, layers
from mindspore_hessian.operators.cotangents import cotangents, in_graph, term_weights
from mindspore_hessian.operators.data import Batch
from mindspore_hessian.operators.fisher import EmpiricalFisherOperator, FisherOperator
from mindspore_hessian.operators.kfac import APPROXIMATIONS, Views, explains
from mindspore_hessian.optim._background import Task
from mindspore_hessian.optim._bodies import (
    Graphs,
    clipping,
    compiled,
    one_number,
    telling,
    value_and_gradients,
)
from mindspore_hessian.optim._sums import Sums
from mindspore_hessian.optim.kfac import KFAC, Block, Scales, preconditioned, row_of_moments
from mindspore_hessian.transforms import compose


class KFACStep:
    """What `TrainStep` does with a `KFAC`; the arguments are its own, checked."""

    def __init__(
        self,
        network: nn.Cell,
        loss_fn: Any,
        optimizer: KFAC,
        seed: int,
        clip_norm: float | None,
        sums: Sums | None,
    ):
        if optimizer.of_network is not network:
            raise ValueError("optimizer must be a KFAC of this network: optim.KFAC(network)")
        if loss_fn is None:
            raise ValueError(
                "loss_fn must be given with KFAC, which needs the curvature of the loss at the "
                "network's output"
            )
        if clip_norm is not None and optimizer.adaptive:
            raise ValueError(
                "clip_norm is not for KFAC with adaptive=True, whose quadratic model has the "
                "gradient as it is: leave it out"
            )
        self.network, self.loss_fn, self.optimizer = network, loss_fn, optimizer
        self.seed, self.clip_norm, self.sums = seed, clip_norm, sums
        self.graphs = Graphs(network, loss_fn)
        self.token: tuple = ()  # what network and loss captured at the last step
        self.outputs: dict[Any, tuple[int, ...]] = {}
        self.terms: dict[tuple[int, ...], Parameter] = {}
        self.op: Any = None
        self.task: Task | None = None

    def __call__(self, inputs: tuple[Tensor, ...], check: Callable[[tuple], None]) -> Tensor:
        optimizer, done = self.optimizer, int(_compat.to_numpy(self.optimizer.global_step)[0])
        burned = optimizer.read(optimizer.burned)
        burning = burned < optimizer.burn_in
        seen = (
            burning
            or done % optimizer.curvature_update_period == 0
            or optimizer.read(optimizer.weight) == 0.0
        )
        self._collect()
        with contextlib.nullcontext() if self.sums is None else self.sums.together(seen):
            batch = self._batch(inputs, check)
            draws = (done, 1 + burned) if burning else (done,)
            value, taken, *gradients = self._measure(batch, inputs, draws, seen)
        if self.sums is not None:
            if not self.sums.due():
                return value
            tensors = (value, *self.sums.totals(seen))
            taken, *gradients = self._run(("fold", seen), lambda: _folding(self, seen), tensors)
        if burning:
            optimizer.count(optimizer.burned if _compat.to_numpy(taken) else optimizer.skipped)
            return value
        self._invert(done)
        if optimizer.adaptive and bool(_compat.to_numpy(taken)):
            return self._adaptive(batch, done, value, tuple(gradients))
        self._update(tuple(gradients), taken, np.zeros(2))
        return value

    # --- the inverses -----------------------------------------------------------------------------

    def _invert(self, done: int) -> None:
        """Where it is time: the inverses, now or in the background."""
        optimizer = self.optimizer
        first = not optimizer.read(optimizer.inverted)
        if not optimizer.read(optimizer.weight):
            return
        if first or (done % optimizer.inverse_update_period == 0 and not optimizer.background):
            optimizer.take(optimizer.inverting(self.blocks)())
        elif done % optimizer.inverse_update_period == 0 and self.task is None:
            self._begin()

    def _begin(self) -> None:
        optimizer = self.optimizer
        self.task = Task(optimizer.inverting(self.blocks, True), optimizer.moments.data_ptr())
        optimizer.count(optimizer.awaited, 1 - optimizer.read(optimizer.awaited))

    def _collect(self) -> None:
        """Take the inverses that are ready; begin anew where a checkpoint that was loaded waits for
        them.
        """
        optimizer, task = self.optimizer, self.task
        if task is not None and task.of != optimizer.moments.data_ptr():
            task = self.task = None  # another state was loaded meanwhile
        if task is None:
            if optimizer.background and optimizer.read(optimizer.awaited) and self.op is not None:
                self._begin()
        elif task.ready():
            self.task = None
            optimizer.count(optimizer.awaited, -optimizer.read(optimizer.awaited))
            optimizer.take(task.value())

    def _batch(self, inputs: tuple[Tensor, ...], check: Callable[[tuple], None]) -> Batch:
        """The inputs, checked; where network or loss are others than before, these are looked
        at.
        """
        check(inputs)
        if inputs[0].ndim == 0:
            raise ValueError(
                "inputs must have samples along their first axis, but the first of them has no axes"
            )
        token = self.graphs.token()
        if token != self.token:
            self._look(inputs)
            self.terms.clear()
            self.outputs.clear()
            self.token = token
        return Batch(inputs[:-1], {}, inputs[-1:], int(inputs[0].shape[0]))

    # --- the first step ---------------------------------------------------------------------------

    def _look(self, inputs: tuple[Tensor, ...]) -> None:
        """What the loss is, and which layers explain the gradients of their Parameters, as
        evaluation has them.
        """
        optimizer = self.optimizer
        trained = {id(p) for p in optimizer.parameters}
        self.statistics = [p for p in self.network.get_parameters() if id(p) not in trained]
        self._refuse_nan(inputs)
        own = (
            {} if optimizer.fisher == "empirical" else {"mc_samples": int(optimizer.fisher == "mc")}
        )
        kind: Any = EmpiricalFisherOperator if optimizer.fisher == "empirical" else FisherOperator
        data = (inputs[:-1], inputs[-1])
        with _evaluating(self.network):
            op = kind(
                self.network,
                self.loss_fn,
                data,
                list(optimizer.parameters),
                likelihood=optimizer.likelihood,
                check_deterministic=False,
                progress=False,
                **own,
            )
            views = Views(op, False)
        scaling, norms = self._scales(op, inputs)
        taps = optimizer.taps
        seen = *views.taps.taps, *norms
        known = {tap.key for tap in seen}
        positions_first = {tap.key for tap in seen if tap.positions_first}
        for tap in taps.taps:
            tap.positions_first = tap.key in positions_first
        self.places = {
            number: place
            for place, number in enumerate(
                [number for number, tap in enumerate(taps.taps) if tap.key in known]
            )
        }
        covered = {id(optimizer.parameters[at]) for block in scaling for at in block.places}
        found = {name: o for name, o in views.others.items() if id(o.parameter) not in covered}
        others = {number for number, p in enumerate(optimizer.parameters) if p.name in found}
        self.blocks: list[Block] = [
            block for block in optimizer.blocks if not others & set(block.places)
        ]
        said = ", ".join(f"{name} ({one.why})" for name, one in list(found.items())[:5])
        if all(isinstance(block, Scales) for block in self.blocks):
            raise ValueError(f"KFAC has no layer to precondition: {said}")
        if found:
            rest = f" and {len(found) - 5} more" if len(found) > 5 else ""
            warn(
                f"KFAC has no Kronecker factors for {said}{rest}: these get the plain gradient",
                FallbackWarning,
            )
        if self.sums is not None:
            self.sums.expect(", ".join(block.name for block in self.blocks))
        self.taps = taps.only([taps.taps[number] for number in self.places])
        self.op = op

    def _scales(self, op: Any, inputs: tuple[Tensor, ...]) -> tuple[list[Scales], list[layers.Tap]]:
        """Those of normalization layers that are called once, and explain the gradients of their
        Parameters; and what looks at these, which knows where their samples are.
        """
        optimizer, size = self.optimizer, int(inputs[0].shape[0])
        blocks = [block for block in optimizer.blocks if isinstance(block, Scales)]
        if not blocks:
            return [], []
        taps = optimizer.taps.only([optimizer.taps.taps[block.taps[0]] for block in blocks])
        batch, count = Batch(inputs[:-1], {}, inputs[-1:], size), len(blocks)
        asked = [at for block in blocks for at in block.places]
        build = layers.with_gradient(taps, tuple(optimizer.parameters[at] for at in asked))
        program = Program("kfac.scales", build, (taps.token, size, *asked))
        ways = ["calls"] * count, ["scale sums"] * count
        with self._unmoved():
            shape = op.risk.output(batch).shape
            cotangent = np.random.default_rng(0).standard_normal(shape).astype(op.dtype)
            with taps.installed(*ways, size, taps.weights((size, 1))):
                parts = op.risk.run(batch, program, (Tensor(cotangent),))
        parts = [_compat.to_numpy(part) for part in parts]
        slopes = dict(zip(asked, parts[2 * count :], strict=True))
        found = {
            taps.taps[number].key: block
            for number, (block, calls, rows) in enumerate(
                zip(blocks, parts, parts[count:], strict=False)
            )
            if round(float(np.ravel(calls)[0])) == 1
            and all(
                at is None or explains(row, slopes[at], op.dtype)
                for at, row in zip((block.weight, block.bias), rows, strict=True)
            )
        }
        of_positions = {
            tap.key
            for tap, calls in zip(taps.taps, parts, strict=False)
            if tap.kind is layers.LAYER_NORM and np.ravel(calls)[-1] > size
        }
        seen = [tap for tap in taps.taps if tap.key not in of_positions]
        if of_positions:  # which axis has the samples?
            with _evaluating(self.network):
                views = Views(op, False, kinds=layers.OF_POSITIONS)
            seen += [tap for tap in views.taps.taps if tap.key in of_positions]
        seen = [tap for tap in seen if tap.key in found]
        return [found[tap.key] for tap in seen], seen

    def _refuse_nan(self, inputs: tuple[Tensor, ...]) -> None:
        named = [
            *((f"input {number}", value) for number, value in enumerate(inputs)),
            *((repr(p.name), p) for p in self.network.get_parameters()),
        ]
        bad = [name for name, value in named if not np.isfinite(_compat.to_numpy(value)).all()]
        if bad:
            raise ValueError(
                f"{bad[0]} holds NaN or Inf. K-FAC looks at its network with the first batch: give "
                "it one without. Nothing has changed"
            )

    # --- the gradient and the factors -------------------------------------------------------------

    def _measure(
        self, batch: Batch, inputs: tuple[Tensor, ...], draws: tuple[int, ...], seen: bool
    ) -> Any:
        count, key = (
            len(inputs),
            (
                tuple((tuple(t.shape), str(t.dtype)) for t in inputs),
                tuple(cell.training for _, cell in self.network.cells_and_names()),
            ),
        )
        if not seen:
            return self._run(("plain", key), lambda: _plain(self, count), inputs)
        noises, terms = self._noises(batch, draws, key), self._terms(batch)
        out = self._run(
            ("curved", key),
            lambda: _curved(self, count, terms),
            (*inputs, next(noises)),
            batch,
            terms,
        )
        try:
            for more in noises:
                self._run(
                    ("more", key),
                    lambda: _more(self, count - 1, terms),
                    (*inputs[:-1], more, out[1]),
                    batch,
                    terms,
                )
        except BaseException:
            if self.sums is not None:  # a part of the call's estimates is in them
                self.sums.emptied()
            raise
        return out

    def _noises(self, batch: Batch, draws: tuple[int, ...], key: Any) -> Iterator[Tensor]:
        """What the graph takes for the draws of the step; the gradients at the output themselves
        for "exact".
        """
        if self.optimizer.fisher == "empirical":
            yield Tensor(np.zeros(1, np.float32))
            return
        if self.optimizer.fisher == "exact":
            with self._unmoved():
                vectors = list(cotangents(self.op, batch, 0))
            for vector in vectors:
                yield Tensor(vector.astype(self.op.dtype))
            return
        if key not in self.outputs:
            with _evaluating(self.network):
                self.outputs[key] = self.op.risk.output(batch).shape
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=draws))
        rows, *others = self.outputs[key]
        before = 0 if self.sums is None else self.sums.before(rows)
        shape = (before + rows, *others)
        yield Tensor(self.op.likelihood.noise(shape, generator, np.float32)[before:])

    def _terms(self, batch: Batch) -> Parameter:
        """The weights of the terms of the loss."""
        weights = term_weights(self.op, batch)
        shape = tuple(weights.shape)
        terms = self.terms.get(shape)
        if terms is None or self.op._weighted:
            terms = self.terms[shape] = self.taps.weights(shape)
            _compat.assign(terms, weights.astype(self.op.dtype))
        return terms

    # --- the update -------------------------------------------------------------------------------

    def _update(self, gradients: tuple, taken: Any, best: np.ndarray) -> None:
        """The step; with `adaptive`, of these multiples of the direction and the last step."""
        coefficients = (Tensor(best * [-1.0, 1.0]),) if self.optimizer.adaptive else ()
        self._run(("update",), lambda: _updating(self), (*gradients, taken, *coefficients))

    def _statistics(self) -> tuple[list[str], list[str]]:
        """Those of the inputs and of the gradients, for each layer."""
        how = APPROXIMATIONS[self.optimizer.approx]
        of_inputs = "alike" if how == "moments" and not self.op._weighted else how
        scaling = [tap.kind.scales for tap in self.taps.taps]
        return (
            ["nothing" if one else of_inputs for one in scaling],
            ["scale squares" if one else how for one in scaling],
        )

    def _run(
        self,
        key: Any,
        make: Callable[[], Callable],
        tensors: tuple,
        batch: Batch | None = None,
        terms: Any = None,
    ) -> Any:
        """Run a graph, which is compiled where it is not there, with the probes in the layers where
        there is a batch.
        """

        def compile_it() -> Any:
            if batch is not None and self.optimizer.approx == "reduce":
                for tap in self.taps.taps:
                    tap.widen(self.taps.dtype, batch.size)
            with (
                contextlib.nullcontext()
                if batch is None
                else self.taps.installed(*self._statistics(), batch.size, terms)
            ):
                return compiled(make(), tensors)

        seeing = key[0] in ("plain", "curved", "more")
        # others see no network, but the update which blocks there are
        token = self.token if seeing else tuple(block.name for block in self.blocks)
        return self.graphs.graph(key, token, compile_it)(tensors)

    def _adaptive(self, batch: Batch, done: int, value: Tensor, gradients: tuple) -> Tensor:
        """Rate and momentum by the quadratic model, and the damping by how the loss changes."""
        optimizer, size = self.optimizer, self.optimizer.size
        found = self._run(("direct",), lambda: _directing(self), gradients)
        parts = [_compat.to_numpy(part).astype(np.float64) for part in found]
        g, p = (
            np.concatenate([one.ravel() for one in part]) for part in (parts[:size], parts[size:])
        )
        v = np.concatenate(
            [_compat.to_numpy(one).astype(np.float64).ravel() for one in optimizer.velocity]
        )
        with self._unmoved():
            curved = self._quadratic(batch, p, v)
        both = np.stack([p, v])
        model = curved + optimizer.l2 * both @ both.T
        slope = both @ g
        best = _minimum(model + optimizer.read(optimizer.damping) * both @ both.T, slope)
        if best is None:
            self._update(gradients, Tensor(False), np.zeros(2))
            return value
        before = float(_compat.to_numpy(value)), self._norm()
        kept = [
            (one, _compat.to_numpy(one).copy())
            for one in (*optimizer.parameters, *optimizer.velocity)
        ]
        self._update(gradients, Tensor(True), best)
        if (done + 1) % optimizer.damping_interval == 0:
            with self._unmoved():
                after = float(self.op.risk.loss(batch))
            if not np.isfinite(after):
                for parameter, old in kept:
                    _compat.assign(parameter, old)
                optimizer.count(optimizer.skipped)
            change = after - before[0] + optimizer.l2 / 2 * (self._norm() - before[1])
            optimizer.adapt(change, float(slope @ best + best @ model @ best / 2))
        return value

    def _norm(self) -> float:
        """The squared norm of the weights, where l2_reg counts it."""
        if not self.optimizer.l2:
            return 0.0
        return sum(
            float((_compat.to_numpy(p).astype(np.float64) ** 2).sum())
            for p in self.optimizer.parameters
        )

    def _quadratic(self, batch: Batch, p: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The products of two directions with the Gauss-Newton matrix and each other."""
        places, start = {}, 0
        for parameter in self.optimizer.parameters:
            places[id(parameter)] = np.arange(start, start + parameter.size)
            start += parameter.size
        order = np.concatenate([places[id(parameter)] for parameter in self.op.weights])
        rows = Tensor(np.stack([p[order], v[order]]).astype(self.op.dtype))
        return _compat.to_numpy(self.op.risk.run(batch, QUADRATIC, (rows,))).astype(np.float64)

    @contextlib.contextmanager
    def _unmoved(self) -> Iterator[None]:
        """Within it the network may be evaluated again: running means and the like are then as they
        were.
        """
        with _compat.kept(self.statistics):
            yield


@contextlib.contextmanager
def _evaluating(network: nn.Cell) -> Iterator[None]:
    """Within it the network is in evaluation mode."""
    flags = [(cell, cell.training) for _, cell in network.cells_and_names()]
    if not any(flag for _, flag in flags):
        yield
        return
    network.set_train(False)
    try:
        yield
    finally:
        network.set_train()
        for cell, flag in flags:
            if not flag:
                cell.add_flags(training=False)


def _minimum(matrix: np.ndarray, slope: np.ndarray) -> np.ndarray | None:
    """Where the quadratic model in two directions, of which the second may be 0, is least; None
    where it has none.
    """
    if not (np.isfinite(matrix).all() and np.isfinite(slope).all() and matrix[0, 0] > 0.0):
        return None
    alone = np.array([-slope[0] / matrix[0, 0], 0.0])
    scale = np.sqrt(np.abs(np.diag(matrix)))
    if scale[1] == 0.0:
        return alone
    unit = matrix / np.outer(scale, scale)
    if 1.0 - unit[0, 1] ** 2 < 1e-10:  # both directions are one
        return alone
    return -np.linalg.solve(unit, slope / scale) / scale


# --- what MindSpore compiles ----------------------------------------------------------------------


def _plain(step: KFACStep, count: int):
    value_and_grad = value_and_gradients(step.network, step.loss_fn, step.optimizer, count)
    give = _giving(step)

    def measure(*tensors):
        value, gradients = value_and_grad(*tensors)
        return give(value, gradients, (), tensors[0].shape[0])

    return measure


def _curved(step: KFACStep, count: int, terms: Parameter):
    """The loss, its gradients, and the moments."""
    optimizer, give = step.optimizer, _giving(step)
    value_and_grad = value_and_gradients(step.network, step.loss_fn, optimizer, count, True)
    moments = layers.statistics(step.taps, True)(Function(step.network, count - 1), None)
    vector = None if optimizer.fisher == "exact" else in_graph(step.op)(step.op.loss_fn)
    row = row_of_moments(optimizer, step.blocks, step.places, True, terms)

    def measure(*tensors):
        inputs, u = tensors[: count - 1], tensors[count]
        (value, out), gradients = value_and_grad(*tensors[:count])
        if vector is not None:
            u = ops.stop_gradient(vector(out, tensors[count - 1 : count], u, terms))
        found = row(moments(*(inputs + (ops.expand_dims(u, 0),))))
        return give(value, gradients, (found,), out.shape[0])

    return measure


def _giving(step: KFACStep):
    """``give(value, gradients, moments, rows)``: the moments into the averages, and what goes on;
    or all into the sums.
    """
    optimizer, sums, told = step.optimizer, step.sums, telling(step.optimizer)
    clipped = clipping(optimizer, step.clip_norm)

    def at_once(value, gradients, moments, rows):
        if len(moments) == 0:
            taken = optimizer.finite((value,) + gradients)
            return (told(value, taken), taken) + clipped(gradients)
        taken, done = optimizer.averaged(moments[0], value, gradients)
        return (told(value, done), taken) + clipped(gradients)

    def later(value, gradients, moments, rows):
        done = sums.added(one_number(value), gradients, moments, rows)
        return told(value, done), optimizer.finite((value,))

    return at_once if sums is None else later


def _more(step: KFACStep, count: int, terms: Parameter):
    """The gradients' moments for another vector at the output."""
    optimizer, sums = step.optimizer, step.sums
    moments = layers.statistics(step.taps, False)(Function(step.network, count), None)
    row = row_of_moments(optimizer, step.blocks, step.places, False, terms)

    def more(*tensors):
        found = row(moments(*(tensors[:count] + (ops.expand_dims(tensors[count], 0),))))
        if sums is not None:
            return ops.depend(tensors[count + 1], sums.more((found,)))
        taken, done = optimizer.added_to(found, tensors[count + 1])
        return ops.depend(taken, done)

    return more


def _folding(step: KFACStep, seen: bool):
    """Out of the sums: whether all is finite, the clipped gradients, and the moments into the
    averages.
    """
    optimizer, sums = step.optimizer, step.sums
    clipped = clipping(optimizer, step.clip_norm)

    def fold(*tensors):
        value, gradients, line, _ = sums.means(tensors[1:])
        if seen:
            taken, done = optimizer.averaged(line, value, gradients)
        else:
            taken, done = optimizer.finite((value,) + gradients), ()
        gradients = clipped(gradients)
        return (ops.depend(taken, sums.cleared((taken, done, gradients))),) + gradients

    return fold


def _updating(step: KFACStep):
    optimizer, size, adaptive = step.optimizer, step.optimizer.size, step.optimizer.adaptive
    directions = preconditioned(optimizer, step.blocks)

    def update(*tensors):
        gradients, taken = optimizer.regularised(tensors[:size]), tensors[size]
        if adaptive:
            done = optimizer(gradients, directions(gradients), taken, tensors[size + 1])
        else:
            done = optimizer(gradients, directions(gradients), taken)
        return ops.depend(taken, done)

    return update


def _directing(step: KFACStep):
    """The gradients with those of l2_reg, and these times the inverse."""
    optimizer, directions = step.optimizer, preconditioned(step.optimizer, step.blocks)

    def direct(*gradients):
        found = optimizer.regularised(gradients)
        return found + directions(found)

    return direct


def _quadratic(function: Function, space: Any):
    """V C V^T of rows V, with the Gauss-Newton matrix C."""
    out, n, params = kernels.one_output(function.value), function.n, space.parameters
    push = compose.jvp(kernels.one_output(function.value), (), params)
    curve = compose.hessian_product(compose.scalar(function.loss, "loss_fn"), (0,), None, "revrev")
    split = unraveled((), params)

    def run(*tensors):
        xs, rows = tensors[:-1], tensors[-1]
        inputs = xs[:n]
        at, first, second = (
            out(*inputs),
            push(inputs, split(xs, rows[0])),
            push(inputs, split(xs, rows[1])),
        )
        image = curve((at,) + xs[n:], (first,))[0]
        other = curve((at,) + xs[n:], (second,))[0]
        mixed = (image * second).sum()
        return ops.stack(((image * first).sum(), mixed, mixed, (other * second).sum())).reshape(
            2, 2
        )

    return run


QUADRATIC = Program("kfac.quadratic", _quadratic)
