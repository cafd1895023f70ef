from . import classifier as classifier, digits as digits, even_prime as even_prime, exact as exact
from .catalogue import ENTRIES as ENTRIES, load as load
from .networks import DATA as DATA, NO_CLASS as NO_CLASS
