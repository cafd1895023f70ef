from .ema import ema_update as ema_update
from .fit import Fit as Fit
from .fit import Progress as Progress
from .fit import cosine as cosine
from .fit import fit as fit
from .networks import MLP as MLP
from .networks import UNet as UNet
