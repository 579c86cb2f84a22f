"""Functions that are typed at a plain Python prompt, where only readline's history has their
text.
"""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("readline")
ROOT = Path(__file__).parent.parent

TYPED = """
import mindspore as ms
from mindspore import nn, ops
from mindspore_hessian import hessian, hvp
x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
print(hvp(lambda x: (x ** 3).sum(), x, v))
def helper(y):
    return y ** 2

def f(x):
    return (helper(x) * x).sum()

print("plain", hvp(f, x, v))
def f(x):
    return (helper(x) * helper(x)).sum()

print("again", hvp(f, x, v))
f = lambda x: (x ** 2).sum(); g = lambda x: (x ** 3).sum()
print("second of a line", hvp(g, x, v))
class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.c = 2.0
    def construct(self, x):
        return (self.c * helper(x)).sum()

print("cell", hvp(Net(), x, v))
make = eval("lambda: (lambda x: (x ** 5).sum())")
exec("def unseen(x):\\n    return (x ** 7).sum()")
unseen.__code__ = unseen.__code__.replace(co_filename="<stdin>")
hvp(unseen, x, v)
print("done", 40 + 2)
"""


def typed(text: str, folder: Path) -> str:
    """What a Python prompt answers, typed line by line."""
    child, screen = pty.fork()
    if child == 0:
        os.chdir(folder)
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TERM": "dumb",
            "PYTHON_BASIC_REPL": "1",
            "HOME": str(folder),
        }
        os.execve(sys.executable, [sys.executable, "-q", "-i"], env)
    seen, end = b"", time.monotonic() + 240
    lines = iter([*text.strip().split("\n"), "exit()"])
    while time.monotonic() < end:
        if select.select([screen], [], [], 0.5)[0]:
            try:
                seen += os.read(screen, 65536)
            except OSError:
                break
        elif seen.endswith((b">>> ", b"... ")):
            os.write(screen, (next(lines, "") + "\n").encode())
    os.waitpid(child, 0)
    return seen.decode(errors="replace")


def test_what_is_typed_can_be_differentiated(tmp_path):
    answer = typed(TYPED, tmp_path)
    for line in (
        "[ 6. 12.]",
        "plain [ 6. 12.]",
        "again [12. 48.]",
        "second of a line [ 6. 12.]",
        "cell [4. 4.]",
        "done 42",
    ):
        assert line in answer, answer[-3000:]
    assert "out of reach" in answer and "unseen" in answer
