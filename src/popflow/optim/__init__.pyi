from .auto import Auto as Auto
from .capture import (
    Layer as Layer,
    Rows as Rows,
    Tap as Tap,
    categorical_cotangent as categorical_cotangent,
    expand as expand,
    find_layers as find_layers,
    gaussian_cotangent as gaussian_cotangent,
    over_data as over_data,
    over_rows as over_rows,
    per_datum as per_datum,
    reduce as reduce,
    rows as rows,
    summed as summed,
)
from .gram import Kernel as Kernel, kernel as kernel, minsr as minsr, spring as spring
from .options import growing as growing
from .report import Preconditioned as Preconditioned
from .singd import SINGD as SINGD
from .structures.blocks import BlockDiagonal as BlockDiagonal, Dense as Dense, Diagonal as Diagonal
from .structures.hierarchical import Hierarchical as Hierarchical, rank_triangular as rank_triangular
from .structures.structure import Structure as Structure
from .structures.toeplitz import LowerToeplitz as LowerToeplitz, UpperToeplitz as UpperToeplitz
from .structures.triangular import LowerTriangular as LowerTriangular, UpperTriangular as UpperTriangular
