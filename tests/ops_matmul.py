"""Matrix products of every kind, as functions of one stack of matrices (2, 3, 4): rows of ops_table.py."""
from __future__ import annotations

from mindspore import ops


def vectors(x):
    return ops.matmul(x[0, 0], x[1, 1])


def vector_matrix(x):
    return ops.matmul(x[0, :, 0], x[1])


def matrix_vector(x):
    return ops.matmul(x[0], x[1, 0])


def matrices(x):
    return ops.matmul(x[0], x[1].T)


def stack_matrix(x):
    return ops.matmul(x, x[0].T)


def matrix_stack(x):
    return ops.matmul(x[0].T, x)


def stacks(x):
    return ops.matmul(x, x.swapaxes(1, 2))


def spread_stacks(x):
    return ops.matmul(x[:, None], x.swapaxes(1, 2)[None])


def vector_stack(x):
    return ops.matmul(x[0, :, 0], x)


def stack_vector(x):
    return ops.matmul(x, x[1, 0])


MATMULS = {f.__name__: f for f in (vectors, vector_matrix, matrix_vector, matrices, stack_matrix, matrix_stack, stacks,
                                   spread_stacks, vector_stack, stack_vector)}


def products_of(name):
    def make(dtype):
        return MATMULS[name]
    return make
