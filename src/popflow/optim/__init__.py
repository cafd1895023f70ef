"""Structured inverse-free natural gradient: curvature capture, structured factors, the SINGD optimiser, and solvers in sample space."""

from popflow.optim.auto import Auto
from popflow.optim.blocks import BlockDiagonal, Dense, Diagonal
from popflow.optim.capture import (
    Layer,
    Rows,
    Tap,
    categorical_cotangent,
    expand,
    find_layers,
    gaussian_cotangent,
    over_data,
    over_rows,
    per_datum,
    reduce,
    rows,
    summed,
)
from popflow.optim.gram import Kernel, kernel, minsr, spring
from popflow.optim.hierarchical import Hierarchical, rank_triangular
from popflow.optim.options import growing
from popflow.optim.report import Preconditioned
from popflow.optim.singd import SINGD
from popflow.optim.structures import Structure
from popflow.optim.toeplitz import LowerToeplitz, UpperToeplitz
from popflow.optim.triangular import LowerTriangular, UpperTriangular

__all__ = [
    "SINGD",
    "Auto",
    "BlockDiagonal",
    "Dense",
    "Diagonal",
    "Hierarchical",
    "Kernel",
    "Layer",
    "LowerToeplitz",
    "LowerTriangular",
    "Preconditioned",
    "Rows",
    "Structure",
    "Tap",
    "UpperToeplitz",
    "UpperTriangular",
    "categorical_cotangent",
    "expand",
    "find_layers",
    "gaussian_cotangent",
    "growing",
    "kernel",
    "minsr",
    "over_data",
    "over_rows",
    "per_datum",
    "rank_triangular",
    "reduce",
    "rows",
    "spring",
    "summed",
]
