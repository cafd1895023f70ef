from .candidates import Candidates as Candidates, Found as Found
from .estimator import DiffOPT as DiffOPT
from .feasibility import Feasibility as Feasibility
from .langevin import corrected as corrected, guided as guided, line_integral as line_integral
from .objective import Constraint as Constraint
from .pareto import front as front, hypervolume as hypervolume, simplex_weights as simplex_weights
from .prior import Prior as Prior
from .schema import Schema as Schema
from .surrogate import Surrogate as Surrogate
from .tempering import Tempered as Tempered, next_fraction as next_fraction, tempered as tempered
