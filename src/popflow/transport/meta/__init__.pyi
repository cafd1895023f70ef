from .draws import paired as paired, within_types as within_types
from .embedding import DeepSet as DeepSet, Knn as Knn
from .flow import MetaFlow as MetaFlow
from .generators import Screen as Screen, drug_screen as drug_screen, gaussians as gaussians, letters as letters
from .populations import Pair as Pair, Populations as Populations, Stored as Stored
from .settings import Settings as Settings
