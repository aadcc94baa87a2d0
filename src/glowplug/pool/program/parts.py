"""What of a program has nothing to do with the rest of it.

GPU kinds meet in the budget only. Branch and bound over all of them at once takes the product of what each
takes by itself, for the same plan: so each part is solved alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from glowplug.pool.program.grid import Ints
from glowplug.pool.program.linear import LinearProgram


@dataclass(frozen=True, eq=False)
class Part:
    """A program of its own. ``columns``: of the whole program's, in its order; ``whole``: of its own ones,
    those that must be whole.
    """

    program: LinearProgram
    columns: Ints
    whole: Ints


def independent_parts(program: LinearProgram, whole: Ints) -> tuple[Part, ...]:
    """The parts that have columns that must be whole: no row has columns of two of them.

    What no row has and saves nothing, such as a request for what would come after the end, is nought in the
    best plan, and in no part.
    """
    rows, columns = program.shape
    entries = program.matrix.tocoo()
    links = (np.ones(entries.nnz), (entries.row, rows + entries.col))
    graph = coo_array(links, shape=(rows + columns, rows + columns))
    _, labels = connected_components(graph, directed=False)
    is_whole = np.zeros(columns, dtype=bool)
    is_whole[whole] = True
    is_whole &= (np.diff(program.matrix.indptr) > 0) | (program.cost < 0)
    return tuple(
        _part(program, labels[:rows] == label, labels[rows:] == label, is_whole)
        for label in np.unique(labels[rows:][is_whole])
    )


def _part(
    program: LinearProgram,
    in_rows: NDArray[np.bool_],
    in_columns: NDArray[np.bool_],
    is_whole: NDArray[np.bool_],
) -> Part:
    matrix = program.matrix[:, in_columns].tocsr()[in_rows].tocsc()
    matrix.sort_indices()
    alone = LinearProgram(
        program.cost[in_columns],
        program.lower[in_columns],
        program.upper[in_columns],
        matrix,
        program.row_lower[in_rows],
        program.row_upper[in_rows],
    )
    return Part(alone, np.flatnonzero(in_columns), np.flatnonzero(is_whole[in_columns]))
