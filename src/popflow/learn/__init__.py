"""Learning: one training loop for every method, small networks, averaged weights."""

from popflow.learn.ema import ema_update
from popflow.learn.fit import Fit, Progress, cosine, fit
from popflow.learn.networks import MLP, UNet

__all__ = ["MLP", "Fit", "Progress", "UNet", "cosine", "ema_update", "fit"]
