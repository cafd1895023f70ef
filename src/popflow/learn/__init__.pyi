from .ema import ema_update as ema_update
from .fit import Fit as Fit, Progress as Progress, cosine as cosine, fit as fit
from .networks import MLP as MLP
