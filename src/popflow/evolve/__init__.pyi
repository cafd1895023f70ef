from .molecules import (
    canonical as canonical,
    canonical_or_none as canonical_or_none,
    count_fingerprints as count_fingerprints,
    parse as parse,
    read_seeds as read_seeds,
    seeds as seeds,
    tanimoto as tanimoto,
)
from .operators import Child as Child, Operator as Operator, Parent as Parent
