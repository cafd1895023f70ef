from . import classifier as classifier, digits as digits, even_prime as even_prime, exact as exact, train as train
from .catalogue import DATA as DATA, ENTRIES as ENTRIES, NO_CLASS as NO_CLASS, load as load, names as names
