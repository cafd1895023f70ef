from . import oracles as oracles
from .chat import AskChat as AskChat, Objective as Objective
from .chat_client import ChatClient as ChatClient, ChatError as ChatError, Endpoint as Endpoint
from .constraints import (
    Alerts as Alerts,
    Constraint as Constraint,
    Core as Core,
    Forbidden as Forbidden,
    Hit as Hit,
    Required as Required,
    Similarity as Similarity,
    refused as refused,
)
from .evolution import Evolution as Evolution
from .graph_moves import Crossover as Crossover, Graph as Graph, Mutation as Mutation, crossover as crossover, mutate as mutate
from .infilling import FillGap as FillGap, LearnFirst as LearnFirst, LinkFragments as LinkFragments
from .language_models import (
    BIOT5 as BIOT5,
    EditText as EditText,
    Template as Template,
    TextModel as TextModel,
    load_text_model as load_text_model,
)
from .latent import LatentEdit as LatentEdit
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
from .recipes import RECIPES as RECIPES, Recipe as Recipe, edit_the_best as edit_the_best
from .records import Credit as Credit, Scored as Scored
from .scores import area as area, diversity as diversity, hypervolume as hypervolume, top_mean as top_mean
from .smiles_model import SmilesModel as SmilesModel, fill as fill, log_likelihood as log_likelihood, sample as sample, shipped as shipped
