from .baselines import Scores as Scores, compare as compare, trivial as trivial
from .clouds import Stored as Stored
from .draws import paired as paired, within_types as within_types
from .effects import Effect as Effect, observed_effects as observed_effects, predicted_effects as predicted_effects
from .embedding import DeepSet as DeepSet, Knn as Knn
from .ensemble import Confidence as Confidence, Ensemble as Ensemble
from .flow import MetaFlow as MetaFlow
from .generators import Screen as Screen, drug_screen as drug_screen, gaussians as gaussians, letters as letters
from .mixture import Mixture as Mixture, mixture as mixture
from .populations import Pair as Pair, Populations as Populations
from .settings import Settings as Settings
from .storage import load as load, save as save
