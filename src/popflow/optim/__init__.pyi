from .auto import Auto as Auto
from .capture import (
    Layer as Layer,
)
from .capture import (
    Rows as Rows,
)
from .capture import (
    Tap as Tap,
)
from .capture import (
    categorical_cotangent as categorical_cotangent,
)
from .capture import (
    expand as expand,
)
from .capture import (
    find_layers as find_layers,
)
from .capture import (
    gaussian_cotangent as gaussian_cotangent,
)
from .capture import (
    over_data as over_data,
)
from .capture import (
    over_rows as over_rows,
)
from .capture import (
    per_datum as per_datum,
)
from .capture import (
    reduce as reduce,
)
from .capture import (
    rows as rows,
)
from .capture import (
    summed as summed,
)
from .gram import Kernel as Kernel
from .gram import kernel as kernel
from .gram import minsr as minsr
from .gram import spring as spring
from .options import growing as growing
from .report import Preconditioned as Preconditioned
from .singd import SINGD as SINGD
from .structures.blocks import BlockDiagonal as BlockDiagonal
from .structures.blocks import Dense as Dense
from .structures.blocks import Diagonal as Diagonal
from .structures.hierarchical import Hierarchical as Hierarchical
from .structures.hierarchical import rank_triangular as rank_triangular
from .structures.structure import Structure as Structure
from .structures.toeplitz import LowerToeplitz as LowerToeplitz
from .structures.toeplitz import UpperToeplitz as UpperToeplitz
from .structures.triangular import LowerTriangular as LowerTriangular
from .structures.triangular import UpperTriangular as UpperTriangular
