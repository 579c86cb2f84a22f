"""Where a sparse symmetric matrix is not zero, found from its products, and how few products give
all of its entries.

Pure numpy and scipy: ``product(V)`` gives A times each row of V. Two columns that have no row in
common can be probed by one product, so blocks of columns are cut again and again, each time those
together that cannot meet: about ``4 log2(n)`` products for a tridiagonal matrix, 1.5 n at most for
a dense one. A column that most others meet (an arrow head) is probed alone and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

Product = Callable[[np.ndarray], np.ndarray]
_PARTS = 4  # a block of columns is cut into so many
_AT_ONCE = 64  # vectors in memory


@dataclass(frozen=True)
class Plan:
    """The products that give the entries of A in its pattern: number `slots` of them holds each at
    `places`.
    """

    pattern: sp.csr_array
    slots: np.ndarray
    places: np.ndarray
    group: np.ndarray  # of each column: the number of the product that it takes part in

    @property
    def products(self) -> int:
        return int(self.group.max(initial=-1)) + 1

    def matrix(self, product: Product) -> sp.csr_array:
        """A from its products, with index arrays of its own."""
        values = _values(product, self.group, np.ones(len(self.group)), self.slots, self.places)
        return sp.csr_array(
            (values, self.pattern.indices.copy(), self.pattern.indptr.copy()), self.pattern.shape
        )


def planned(pattern: sp.sparray) -> Plan:
    """Few products for a pattern: each hub has one of its own, and columns without a row in common
    share one.
    """
    pattern = sp.csr_array(pattern, dtype=bool)
    pattern = sp.csr_array(pattern + pattern.T)
    pattern.eliminate_zeros()
    pattern.sort_indices()
    hubs = _hubs(np.diff(pattern.indptr))
    rest = np.setdiff1d(np.arange(pattern.shape[0]), hubs)
    group = np.empty(pattern.shape[0], np.int64)
    group[rest] = _colours(sp.csc_array(pattern[rest][:, rest]))
    group[hubs] = np.arange(len(hubs)) + (group[rest].max(initial=-1) + 1)
    rows, columns = pattern.nonzero()  # row after row, as the entries of a csr_array
    mirrored = np.isin(rows, hubs) & ~np.isin(
        columns, hubs
    )  # A[i, j] is then read from the column i
    return Plan(
        pattern, group[np.where(mirrored, rows, columns)], np.where(mirrored, columns, rows), group
    )


def detected(product: Product, n: int, rng: np.random.Generator) -> sp.csc_array:
    """The pattern of A: what is exactly zero in products with random vectors is taken for zero."""
    vector = rng.uniform(1, 2, n) * rng.choice([-1, 1], n)
    found = sp.csc_array((n, n), dtype=bool)
    hubs = np.array([], np.int64)
    edges = np.array([0, n])
    support = sp.csc_array(np.ones((n, 1), bool))  # rows that each block of columns may meet
    while (np.diff(edges) > 1).any():
        new = np.setdiff1d(_hubs(np.diff(support.tocsr().indptr)), hubs)
        found, hubs = found + _columns(product, new, n), np.union1d(hubs, new)
        support = _without(support, hubs)
        vector[hubs] = 0
        colours, widths = _colours(support), np.diff(edges)
        parts = np.minimum(widths, _PARTS)
        parent = np.repeat(np.arange(len(parts)), parts)
        part = np.arange(len(parent)) - np.repeat(np.cumsum(parts) - parts, parts)
        edges = np.append(edges[parent] + part * widths[parent] // parts[parent], n)
        probe = np.unique(colours[parent] * _PARTS + part, return_inverse=True)[1]
        possible = support[:, parent].tocoo()
        column_probe = np.repeat(probe, np.diff(edges))
        met = _values(product, column_probe, vector, probe[possible.col], possible.row) != 0
        support = _of(possible.row[met], possible.col[met], possible.shape)
    return sp.csc_array(found + support)


def _values(
    product: Product, group: np.ndarray, vector: np.ndarray, slots: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Entries `places` of the products number `slots`; number k is that with the entries of
    `vector` in group k.
    """
    out = np.zeros(len(slots))
    for start in range(0, int(group.max(initial=-1)) + 1, _AT_ONCE):
        columns = np.flatnonzero((group >= start) & (group < start + _AT_ONCE))
        seeds = np.zeros((group[columns].max() - start + 1, len(group)))
        seeds[group[columns] - start, columns] = vector[columns]
        here = (slots >= start) & (slots < start + _AT_ONCE)
        out[here] = product(seeds)[slots[here] - start, places[here]]
    return out


def _columns(product: Product, which: np.ndarray, n: int) -> sp.csc_array:
    """The pattern of some columns and, A being symmetric, of the rows with the same numbers."""
    group = np.full(n, -1)
    group[which] = np.arange(len(which))
    slots, places = np.repeat(np.arange(len(which)), n), np.tile(np.arange(n), len(which))
    met = _values(product, group, np.ones(n), slots, places) != 0
    part = _of(places[met], which[slots[met]], (n, n))
    return sp.csc_array(part + part.T)


def _of(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> sp.csc_array:
    return sp.csc_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)


def _without(support: sp.csc_array, hubs: np.ndarray) -> sp.csc_array:
    coo = support.tocoo()
    keep = ~np.isin(coo.row, hubs)
    return _of(coo.row[keep], coo.col[keep], support.shape)


def _hubs(degrees: np.ndarray) -> np.ndarray:
    """The rows to take alone: a row of degree d costs d products if it stays, for no colouring
    needs fewer.
    """
    order = np.argsort(-degrees, kind="stable")
    cost = np.arange(len(degrees)) + degrees[order]
    return np.sort(order[: int(np.argmin(cost))])


def _colours(support: sp.csc_array) -> np.ndarray:
    """A number for each column, different for columns that have a row in common; greedy, from the
    first on.
    """
    support = sp.csc_array(support, dtype=np.int32)
    meets = sp.csr_array(support.T @ support)
    colours = np.full(support.shape[1], -1)
    for column in range(support.shape[1]):
        taken = set(
            colours[meets.indices[meets.indptr[column] : meets.indptr[column + 1]]].tolist()
        )
        colour = 0
        while colour in taken:
            colour += 1
        colours[column] = colour
    return colours
