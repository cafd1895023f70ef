from .evolution import Evolution as Evolution
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
from .pool import draw as draw, start_pool as start_pool
from .preranking import PreRanking as PreRanking, Surrogate as Surrogate
from .recipes import RECIPES as RECIPES, Recipe as Recipe, edit_the_best as edit_the_best, hit as hit
from .records import Credit as Credit, Scored as Scored
