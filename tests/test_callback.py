"""`CurvatureMonitor`: training goes on bit by bit as without it, and what it measures is right.

Trainings have at most five steps: MindSpore's dropout on CPU chooses its number of threads by
timing at the sixth call, and from then on its masks differ from run to run, without any monitor.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import random
import sys
import time
import types

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import nn, ops
from mindspore.train import Model
from mindspore.train.summary_pb2 import Event
from spectra import dense

from mindspore_hessian import HessianOperator, NonFiniteWarning, Operator
from mindspore_hessian.tools.monitor import COLUMNS, CurvatureMonitor, learning_rate_of, undisturbed

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 4)).astype(np.float32), RNG.integers(0, 3, 12).astype(np.int32)


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm = nn.Dense(4, 5), nn.BatchNorm1d(5)
        self.drop, self.out = nn.Dropout(p=0.5), nn.Dense(5, 3)

    def construct(self, x):
        return self.out(self.drop(ops.tanh(self.norm(self.hidden(x)))))


def by_model(net, optimizer, monitors, data):
    Model(net, nn.CrossEntropyLoss(), optimizer).train(2, data, callbacks=monitors)


def by_hand(net, optimizer, monitors, _):
    net.set_train()
    cross_entropy = nn.CrossEntropyLoss()

    def loss(x, y):
        return cross_entropy(net(x), y)

    step = ms.value_and_grad(loss, None, net.trainable_params())
    for _ in range(4):
        rows = np.random.choice(12, 6, replace=False)
        optimizer(step(ms.Tensor(X[rows]), ms.Tensor(Y[rows]))[1])
        for monitor in monitors:
            monitor.step(learning_rate=optimizer)


def outcome(train, watched, **arguments):
    """Everything that training leaves behind, as bytes, the network and the monitor."""
    ms.set_seed(1)
    ms.manual_seed(2)
    random.seed(3)
    net = Net()
    optimizer = nn.SGD(net.trainable_params(), 0.1, momentum=0.9)
    data = ds.NumpySlicesDataset({"x": X, "y": Y}, shuffle=True).batch(6)
    source = (
        data if train is by_model else (X, Y)
    )  # the very pipeline that the training goes through
    monitors = (
        [CurvatureMonitor(source, net, nn.CrossEntropyLoss(), **arguments)] if watched else []
    )
    train(net, optimizer, monitors, data)
    left = {
        p.name: p.asnumpy().tobytes() for p in (*net.get_parameters(), *optimizer.get_parameters())
    }
    left["training"] = [cell.training for _, cell in net.cells_and_names()]
    left["random"] = [
        random.random(),
        np.random.rand(),
        ms.get_seed(),
        ms.get_rng_state().asnumpy().tobytes(),
        ops.standard_normal((3,)).asnumpy().tobytes(),
        ops.dropout(ms.Tensor(X)).asnumpy().tobytes(),
    ]
    return left, net, monitors


def check_numbers(net, op, found):
    with undisturbed((net,)):
        matrix = op.to_dense()
        loss = nn.CrossEntropyLoss()(net(ms.Tensor(X)), ms.Tensor(Y))
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T).astype(np.float64) / 2)
    assert found.sharpness == pytest.approx(eigenvalues[-1], rel=1e-4)
    assert found.sharpness_residual <= 1e-4 * np.abs(eigenvalues).max()
    assert abs(found.trace - eigenvalues.sum()) <= 4 * found.trace_standard_error
    assert found.loss == pytest.approx(float(loss.asnumpy()), rel=1e-5) and found.gradient_norm > 0


@pytest.mark.parametrize(
    ("train", "metrics", "mode"),
    [(by_model, ("density",), ms.GRAPH_MODE), (by_hand, ("sharpness", "trace"), ms.PYNATIVE_MODE)],
)
def test_training_goes_on_as_without(train, metrics, mode):
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        alone = outcome(train, False)[0]
        watched, net, (monitor,) = outcome(train, True, every=2, metrics=metrics, tol=1e-4)
        assert any(name.endswith("moving_mean") for name in alone) and any(
            "stat" in name for name in alone
        )
        assert watched == alone and all(alone["training"])
        first, last = monitor.history
        assert (first.step, last.step) == (2, 4)
        assert last.learning_rate == pytest.approx(0.1) and last.threshold == pytest.approx(20)
        for name in ("sharpness", "trace", "density"):
            assert (getattr(last, name) is not None) == (name in metrics)
        if train is by_hand:
            check_numbers(net, monitor.op, last)
        assert (
            0 < last.share < 1 and 0 < first.share < 1 and last.seconds < first.seconds
        )  # the first one compiles
    finally:
        ms.set_context(mode=before)


# --- operators of numpy: what needs no compiler ---------------------------------------------------


class Matrix(Operator):
    """A matrix that changes by `drift` at each step of the test, and does `mischief` at each
    product.
    """

    def __init__(self, matrix, mischief=lambda: None, slope=None, loss=1.0):
        self.matrix, self.mischief, self.shape, self.dtype = (
            matrix,
            mischief,
            matrix.shape,
            np.dtype(np.float64),
        )
        if slope is not None:
            self.gradient_and_loss = lambda: (slope, loss)

    def columns(self, matrix):
        self.mischief()
        return self.matrix @ matrix

    def flatten(self, structure):
        return np.concatenate(structure)


def monitor_of(size=3, **arguments):
    return CurvatureMonitor(Matrix(np.diag(np.arange(1.0, size + 1))), **arguments)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_state_comes_back_even_after_an_error(error):
    net = nn.SequentialCell(
        nn.Dense(2, 2), nn.BatchNorm1d(2), nn.SequentialCell(nn.Dropout(p=0.5), nn.Dense(2, 1))
    )
    net.set_train()
    net[2][0].set_train(False)
    frozen = net[1].moving_mean
    frozen.set_data(ms.Tensor([1.0, np.nan], ms.float32))
    seen = []

    def mischief():
        seen.append([cell.training for _, cell in net.cells_and_names()])
        random.random()
        np.random.rand()
        ms.manual_seed(5)
        ops.assign(frozen, ms.Tensor([7.0, 7.0], ms.float32))
        if error is not None:
            raise error("stop")

    def state():
        return (
            [cell.training for _, cell in net.cells_and_names()],
            random.getstate(),
            np.random.get_state()[1].tolist(),
            ms.get_rng_state().asnumpy().tolist(),
            frozen.asnumpy().tobytes(),
        )

    before = state()
    monitor = CurvatureMonitor(Matrix(np.eye(3), mischief), network=net, every=1)
    if error is None:
        monitor.step()
    else:
        with pytest.raises(error, match="stop"):
            monitor.step()
    assert seen and not any(map(any, seen)) and state() == before
    assert before[0].count(False) == 1  # the cell that the user keeps out of training stays out


def test_every_is_respected():
    monitor = monitor_of(every=3)
    assert [monitor.step() is not None for _ in range(7)] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [one.step for one in monitor.history] == [3, 6]
    assert monitor.step(8) is None and monitor.step(14).step == 14  # 9 and 12 lie on the way
    assert monitor.step(2) is None and monitor.step(3).step == 3  # a new count
    assert monitor_of(every=3).step(1000) is None and monitor_of(every=3).step(999) is not None
    assert monitor.measure().step == 3 and monitor.step(4) is None
    assert 0 < monitor.share < 1


def test_the_share_of_the_time():
    monitor = CurvatureMonitor(
        Matrix(np.eye(3), lambda: time.sleep(0.1)), every=2, metrics=("trace",), max_products=4
    )
    for _ in range(4):
        time.sleep(0.2)
        found = monitor.step()
    assert found.seconds >= 0.1 and found.share == pytest.approx(
        found.seconds / (found.seconds + 0.4), abs=0.1
    )
    assert monitor.share == pytest.approx(found.share, abs=0.1)


def test_what_was_not_measured_is_none():
    found = monitor_of(every=1, metrics=("trace",)).step()
    assert found.trace == pytest.approx(6) and found.num_products > 0
    for name in (
        "sharpness",
        "sharpness_residual",
        "density",
        "loss",
        "gradient_norm",
        "learning_rate",
        "threshold",
    ):
        assert getattr(found, name) is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.trace = 0
    found = monitor_of(every=1, metrics=()).step(1, learning_rate=0.5)
    assert found.num_products == 0 and found.threshold == 4


def test_a_warm_start_is_cheaper():
    drift = dense(np.random.default_rng(1).standard_normal(400), seed=2)
    op = Matrix(dense(np.linspace(0.0, 1.0, 400) ** 2))
    warm, cold = CurvatureMonitor(op, every=1, metrics=("sharpness",)), []
    for _ in range(5):
        op.matrix = op.matrix + 1e-4 * drift
        found = warm.step()
        assert found.sharpness == pytest.approx(np.linalg.eigvalsh(op.matrix)[-1], rel=1e-4)
        cold.append(CurvatureMonitor(op, every=1, metrics=("sharpness",)).step().num_products)
    spent = [one.num_products for one in warm.history]
    assert spent[0] == cold[0] and sum(spent[1:]) < 0.8 * sum(cold[1:])


def test_budget_and_trace_tolerance():
    spent = [
        CurvatureMonitor(
            Matrix(dense(np.arange(100.0))), every=1, metrics=(metric,), max_products=20
        ).step()
        for metric in ("sharpness", "trace", "density")
    ]
    assert all(one.num_products <= 20 for one in spent)
    assert spent[2].density.nodes.shape == (2, 10)
    assert monitor_of(50, every=1, metrics=("trace",), max_products=1000).step().num_products == 16


def test_training_that_diverges_is_not_stopped(tmp_path):
    op = Matrix(np.eye(3), slope=(np.array([np.nan, 1.0, 1.0]),), loss=float("inf"))
    monitor = CurvatureMonitor(op, every=1, file=tmp_path / "a.jsonl")
    with pytest.warns(NonFiniteWarning, match="the loss is inf"):
        found = monitor.step()
    assert found.loss == float("inf") and found.sharpness is None and found.num_products == 0
    assert json.loads((tmp_path / "a.jsonl").read_text())["loss"] is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_files_parse_back(tmp_path, suffix):
    path = tmp_path / f"curvature{suffix}"
    monitor = monitor_of(every=1, file=path, metrics=("sharpness", "trace", "density"))
    for rate in (0.5, None):
        monitor.step(learning_rate=rate)
    again = monitor_of(every=1, file=str(path))  # goes on in the same file
    again.step(3)
    with open(path, newline="") as file:
        rows = (
            list(csv.DictReader(file)) if suffix == ".csv" else [json.loads(line) for line in file]
        )
    assert len(rows) == 3
    for row, one in zip(rows, monitor.history + again.history, strict=True):
        assert set(row) - {"density"} == set(COLUMNS)
        for name, value in one.numbers().items():
            assert (float(row[name]) if row[name] not in ("", None) else None) == value
    if suffix == ".jsonl":
        density = rows[0]["density"]
        assert np.sum(np.array(density["nodes"]) * density["weights"]) / len(
            density["nodes"]
        ) == pytest.approx(2)
        assert "density" not in rows[2]


def test_tensorboard(tmp_path, monkeypatch):
    written, closed = [], []

    class SummaryWriter:
        def __init__(self, folder):
            self.add_scalar, self.flush = (
                lambda *scalar: written.append((folder, *scalar)),
                lambda: None,
            )
            self.close = lambda: closed.append(folder)

    monkeypatch.setitem(
        sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )
    with monitor_of(every=1, metrics=("sharpness",), tensorboard=tmp_path) as monitor:
        found = monitor.step()
        assert (str(tmp_path), "curvature/sharpness", found.sharpness, 1) in written
        assert not any("trace" in one[1] for one in written) and not closed
    assert closed == [str(tmp_path)]


def events_in(folder):
    """What MindSpore's event files in a folder hold: (step, name, value)."""
    found = []
    for path in sorted(folder.iterdir()):
        rest = path.read_bytes()
        while rest:  # length, its checksum, the event, its checksum
            length = int.from_bytes(rest[:8], "little")
            event = Event.FromString(rest[12 : 12 + length])
            found += [(event.step, one.tag, one.scalar_value) for one in event.summary.value]
            rest = rest[16 + length :]
    return found


def test_event_files_of_mindspore(tmp_path, monkeypatch):
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with monitor_of(every=1, tensorboard=tmp_path / "new") as monitor:
        found = [monitor.step()]
        monitor.close()  # the next measurement opens another file
        found += [monitor.step(), monitor.step()]
    written = events_in(tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 2
    assert not multiprocessing.active_children()  # nothing that could hang at the end
    for name in ("sharpness", "trace"):
        values = [(step, value) for step, tag, value in written if tag == f"curvature/{name}"]
        assert [step for step, _ in values] == [1, 2, 3]
        expected = [getattr(one, name) for one in found]
        np.testing.assert_allclose([value for _, value in values], expected, rtol=1e-6)


class Groups:
    param_groups = [{"lr": 0.25}, {"lr": ms.Tensor(0.25)}]


def test_learning_rates():
    parameters = [ms.Parameter(ms.Tensor([1.0]), name=name) for name in ("a", "b")]

    def rate(learning_rate, steps=0, groups=None):
        optimizer = nn.Momentum(groups or parameters, learning_rate, 0.9)
        optimizer.global_step.set_data(ms.Tensor([steps], ms.int32))
        return learning_rate_of(optimizer)

    assert rate(0.5) == 0.5 and rate(ms.Tensor(0.5)) == 0.5
    assert [rate([0.5, 0.25, 0.125], steps) for steps in (1, 2, 3, 9)] == [0.5, 0.25, 0.125, 0.125]
    schedule = nn.NaturalExpDecayLR(0.5, 0.1, 1)
    assert rate(schedule, 3) == pytest.approx(0.5 * np.exp(-0.2), rel=1e-6)
    for second, expected in ((0.5, 0.5), (0.25, None)):
        assert (
            rate(0.5, groups=[{"params": parameters[:1]}, {"params": parameters[1:], "lr": second}])
            == expected
        )
    assert learning_rate_of(Groups()) == 0.25 and learning_rate_of(ms.Tensor(0.5)) == 0.5
    assert learning_rate_of(None) is None
    with pytest.raises(TypeError, match="learning_rate"):
        monitor_of(every=1).step(learning_rate="fast")


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"metrics": ("sharpnes",)}, ValueError, "sharpnes"),
        ({"metrics": "trace"}, TypeError, "metrics"),
        ({"every": 0}, ValueError, "every"),
        ({"every": 1.5}, TypeError, "every"),
        ({"file": "a.txt"}, ValueError, "csv"),
        ({"file": "nowhere/a.csv"}, ValueError, "folder"),
        ({"max_products": 1}, ValueError, "max_products"),
        ({"tol": 0}, ValueError, "tol"),
        ({"seed": -1}, ValueError, "seed"),
        ({"options": {"a": 3}}, ValueError, "options"),
        ({"loss_fn": nn.MSELoss()}, ValueError, "loss_fn"),
        ({"network": len}, TypeError, "network"),
    ],
)
def test_refusals(arguments, error, word):
    with pytest.raises(error, match=word):
        monitor_of(**arguments)


def test_more_refusals(tmp_path):
    with pytest.raises(ValueError, match="network is needed"):
        CurvatureMonitor((X, Y))
    with pytest.raises(ValueError, match="step_number"):
        monitor_of().step(-1)
    path = tmp_path / "taken.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        monitor_of(file=path)


def test_the_network_of_an_operator_is_found():
    net = Net()
    op = HessianOperator(net, nn.CrossEntropyLoss(), (X, Y), check_deterministic=False)
    for source in (op, 2 * op + op):
        net.set_train()
        seen = []
        monitor = CurvatureMonitor(source, metrics=())
        monitor.op.gradient_and_loss = lambda seen=seen: (
            seen.append(net.drop.training) or ([np.zeros(3)] * 6, 0.0)
        )
        monitor.op.flatten = np.concatenate
        monitor.measure()
        assert seen == [False] and net.drop.training
