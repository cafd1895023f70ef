"""`DiffOPT`: optimisation inside the data's own feasible set, in scikit-learn's manner."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor

from popflow.compose.constrained.candidates import Candidates, Effort, Found, Sampling, describe, explore
from popflow.compose.constrained.model import Model, Stage, Training, learn_model
from popflow.compose.constrained.objective import Objective, of_calls, of_function, of_surrogate
from popflow.compose.constrained.pareto import simplex_weights
from popflow.compose.constrained.schema import Schema, columns_of
from popflow.core import Streams
from popflow.core.checks import at_least_one
from popflow.core.errors import unknown
from popflow.runs import CostlyFunction

ROUTES = ("exact", "langevin", "guided")


class DiffOPT(BaseEstimator):
    """Rows that are good and could be rows of the data: samples of ``p(x) exp(beta y(x))``, ``p`` a diffusion model of the data.

    ``y`` is standardised, so ``beta`` counts in standard deviations: a row that is one better weighs ``exp(beta)`` times as much.

    Args:
        beta: Inverse temperature; 0 samples the data's distribution, large values its best rows.
        route: ``"exact"``: sequential Monte Carlo with noise-denoise moves, which needs only values; ``"guided"``: guided diffusion; ``"langevin"``: guided
            diffusion, then Metropolis-adjusted Langevin steps. The last two are approximate, and need a gradient.
        objective: None learns a surrogate of ``y``. A function of one row (an array, or a mapping of column names to values) that returns a number
            is called through `popflow.runs.CostlyFunction`. With ``differentiable=True``, a torch function ``rows [n, columns] -> [n]``.
        differentiable: Whether ``objective`` is such a torch function.
        constraints: Known constraints, `popflow.compose.constrained.Constraint`.
        maximize: Whether high values are good.
        categorical: Names or numbers of columns whose numbers are labels, or ``"all"``.
        kappa: Uncertainties that are added to a surrogate's prediction on the optimistic side; negative is cautious.
        weights: Weights of several objectives; None for equal ones. An integer asks for so many different weights, spread evenly: the candidates
            are then those of a front.
        steps: Training steps of the prior and of the surrogate.
        width: Hidden width of their networks.
        members: Networks of the surrogate.
        particles: Rows that are moved together.
        moves: Noise-denoise moves at each temperature.
        reverse_steps: Steps of the reverse diffusion of a move.
        on_error: What a row gets whose objective raises, hangs, or is not finite: ``"skip"`` rules it out, ``"worst"`` gives it the worst of ``y`` (without
            ``y``, of the values so far), ``"raise"`` ends the run.
        ledger: File that every call of the objective is written to before its value is used; None keeps them in memory.
        workers: Calls of the objective at once.
        timeout: Seconds after which a call is ended.
        random_state: Random seed: an integer, None, or a `numpy.random.RandomState`.

    Attributes:
        model_: What was learned: columns, prior, surrogate, feasibility.
        found_: Particles of the last exploration, with acceptance, effective sample size and temperatures.
        calls_: Calls of the objective and their outcomes, a `popflow.runs.CostlyFunction`; None without.

    Raises:
        ValueError: by ``fit``, for missing or infinite values, constant values, rows in which ``y`` is one of the columns, and unknown settings.
        TypeError: by ``fit``, for columns that hold neither numbers nor text.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> found = DiffOPT(beta=2.0, steps=60, width=32, members=2, particles=128, random_state=0).fit(x, -(x**2).sum(1)).sample(16)
        >>> found.shape
        (16, 2)

    Source: Kong et al., *Diffusion models as constrained samplers for optimization with unknown constraints*, AISTATS 2025.
    """

    def __init__(
        self,
        beta=4.0,
        *,
        route="exact",
        objective=None,
        differentiable=False,
        constraints=(),
        maximize=True,
        categorical=(),
        kappa=0.0,
        weights=None,
        steps=3000,
        width=256,
        members=4,
        particles=1024,
        moves=3,
        reverse_steps=30,
        on_error="skip",
        ledger=None,
        workers=None,
        timeout=None,
        random_state=None,
    ):
        self.beta = beta
        self.route = route
        self.objective = objective
        self.differentiable = differentiable
        self.constraints = constraints
        self.maximize = maximize
        self.categorical = categorical
        self.kappa = kappa
        self.weights = weights
        self.steps = steps
        self.width = width
        self.members = members
        self.particles = particles
        self.moves = moves
        self.reverse_steps = reverse_steps
        self.on_error = on_error
        self.ledger = ledger
        self.workers = workers
        self.timeout = timeout
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> DiffOPT:
        """Learn the data's distribution, and a surrogate of ``y`` unless an objective is given.

        Args:
            X: Rows: a pandas DataFrame, a mapping of names to columns, or an array.
            y: Their values, ``[n]`` or ``[n, objectives]``; with an objective they may be left out.
        """
        return self._fit(X, y)

    def _fit(self, X: Any, y: Any, device: torch.device | str = "cpu", stage: Stage = lambda name, steps: {}) -> DiffOPT:
        self._check()
        rows = self._validated(X, reset=True)
        self.schema_ = Schema.of(rows, self.categorical)
        z = self.schema_.encode(rows).to(device)
        if len(z) < 2:
            raise ValueError("n_samples=1: a single row has no distribution to learn, wanted at least two.")
        values = self._values(y, rows, len(z))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.n_objectives_ = 1 if values is None else values.shape[1]
        self.worst_ = None if values is None else (values.amin(0) if self.maximize else values.amax(0)).tolist()
        own = self.objective is None
        self.model_: Model = learn_model(
            self.schema_,
            z,
            None if values is None else values.to(device),
            maximize=self.maximize,
            training=Training(self.steps, self.width, members=self.members, surrogate_steps=self.steps, surrogate_width=self.width),
            seed=self.seed_,
            surrogate=own,
            guide=values is not None and not self.differentiable and self.route != "exact",
            stage=stage,
        )
        self.calls_ = self._calls() if self.objective is not None and not self.differentiable else None
        self.found_ = None
        return self

    def explore(self, sampling: Sampling = lambda name, rng, last: {}) -> Found:
        """Run the route, once; later calls return the same particles."""
        check_is_fitted(self)
        if self.found_ is None:
            self.found_ = explore(
                self.model_,
                self._objective(),
                beta=float(self.beta),
                route=cast(Any, self.route),
                effort=Effort(self.particles, self.moves, max(8, 2 * self.moves), self.reverse_steps),
                constraints=self.constraints,
                weights=self._weights(),
                seed=self.seed_,
                sampling=sampling,
            )
        return self.found_

    def sample(self, n: int = 256) -> Any:
        """Draw ``n`` rows of ``p exp(beta y)``, in the form of the rows of the fit; rows of categories may come more than once."""
        return self.draw(n).rows

    def draw(self, n: int = 256) -> Candidates:
        """Draw ``n`` rows, with their values, uncertainties and feasibility."""
        at_least_one(n=n)
        found = self.explore()
        return describe(self.model_, self._objective(), found.draw(n, Streams(self.seed_, self.model_.rows.device)))

    def best(self, n: int = 256) -> Candidates:
        """Return the ``n`` best different rows of all that were proposed, the best first, with values, uncertainties and feasibility.

        They are fewer when fewer different rows were proposed. Of a front, each of the weights gives a row by turns.

        Raises:
            ValueError: with ``beta=0``, which prefers no row.
        """
        at_least_one(n=n)
        if not self.beta:
            raise ValueError("beta=0: all rows are equally good, wanted a beta above 0. Fix: draw them with sample or draw.")
        return describe(self.model_, self._objective(), self.explore().best(n))

    def predict(self, X: Any) -> np.ndarray:
        """Return predicted values of rows, ``[n]`` or ``[n, objectives]``: those of the surrogate, else of the objective."""
        z = self._encoded(X)
        found = describe(self.model_, self._objective(), z).value.cpu().numpy()
        return found[:, 0] if found.shape[1] == 1 else found

    def feasibility(self, X: Any) -> np.ndarray:
        """Return how typical rows are of the data: the share of held-out rows that are no more typical, ``[n]`` in (0, 1]."""
        z = self._encoded(X)
        return self.model_.feasibility(z).cpu().numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the uncalibrated score of rows, ``[n]``: a bound on their log-density, up to a constant."""
        z = self._encoded(X)
        return self.model_.feasibility.score(z).cpu().numpy()

    def _encoded(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return self.schema_.encode(self._validated(X, reset=False)).to(self.model_.rows.device)

    def _check(self) -> None:
        if self.route not in ROUTES:
            raise ValueError(unknown("route", str(self.route), ROUTES))
        if not 0 <= float(self.beta) < math.inf:
            raise ValueError(f"beta={self.beta!r}, wanted a finite number of at least 0, in units of one over the standard deviation of y.")
        if not math.isfinite(float(self.kappa)):
            raise ValueError(f"kappa={self.kappa!r}, wanted a finite number of uncertainties.")
        at_least_one(**{name: getattr(self, name) for name in ("steps", "width", "members", "particles", "moves", "reverse_steps")})
        if self.differentiable and self.objective is None:
            raise ValueError("differentiable=True without an objective, wanted a torch function: give objective=..., or drop it.")
        if isinstance(self.weights, int) and self.route != "exact":
            raise ValueError(f"weights={self.weights} with route={self.route!r}: several weights at once need route='exact'.")

    def _validated(self, X: Any, reset: bool) -> Any:
        """Let scikit-learn check arrays and frames of numbers; tables with text, and values that are missing, are checked by the schema."""
        if hasattr(X, "tocsr"):
            return validate_data(self, X, reset=reset, accept_sparse=False)
        if isinstance(X, dict):
            return X
        kinds = {np.asarray(X[name]).dtype.kind for name in X.columns} if hasattr(X, "columns") and hasattr(X, "iloc") else set()
        array: Any = X if hasattr(X, "columns") or isinstance(X, Tensor) else np.asarray(X)
        text = getattr(array, "dtype", None)
        odd = bool(kinds - set("fiu")) or (
            isinstance(array, np.ndarray) and array.dtype.kind in "OUS" and array.ndim == 2 and _has_text(array)
        )
        checked: Any = validate_data(
            self, cast(Any, X), reset=reset, dtype=None, ensure_all_finite=False, skip_check_array=odd
        )  # the schema names them
        if odd:
            return checked
        if hasattr(X, "columns"):
            return X
        return checked if text is None or text.kind != "O" else np.asarray(checked, dtype=np.float64)

    def _values(self, y: Any, rows: Any, n: int) -> Tensor | None:
        if y is None:
            if self.objective is None:
                raise ValueError(
                    "This DiffOPT estimator requires y to be passed, but the target y is None. Fix: give the values of the rows, or an objective."
                )
            return None
        try:
            values = torch.from_numpy(np.array(y, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"y holds {error}, wanted numbers.") from error
        values = values.reshape(n, -1) if len(values) == n and values.ndim in (1, 2) else values
        if values.ndim != 2 or len(values) != n:
            raise ValueError(f"y has shape {tuple(np.shape(y))} for {n} rows, wanted [{n}] or [{n}, objectives].")
        bad = int((~values.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"y holds NaN or infinity in {bad} of {n} rows, wanted finite values: drop these rows.")
        for name, column in columns_of(rows).items():
            if (
                column.dtype.kind in "fiu"
                and n > 2
                and column.std() > 0
                and bool((np.asarray(column, float)[:, None] == values.numpy()).all(0).any())
            ):
                raise ValueError(f"column {name!r} of X is y itself: the target stands among the features. Fix: drop the column.")
        return values

    def _objective(self) -> Objective:
        units, calls, schema = self.model_.units, self.calls_, self.schema_
        if self.model_.surrogate is not None:
            return of_surrogate(self.model_.surrogate, units.sign, self.kappa)
        if calls is None:
            assert self.objective is not None
            return of_function(self.objective, schema, units)

        def ask(x: Tensor) -> Tensor:
            table = schema.values(x)
            if schema.form != "array":
                items: Any = [
                    dict(zip(table, row, strict=True)) for row in zip(*(values.tolist() for values in table.values()), strict=True)
                ]
            else:
                items = schema.decode(x)
            return calls(items).reshape(len(x), self.n_objectives_).to(x.device)

        return of_calls(ask, units)

    def _calls(self) -> CostlyFunction:
        assert self.objective is not None
        return CostlyFunction(
            self.objective,
            self.ledger,
            values=self.n_objectives_ if self.n_objectives_ > 1 else None,
            workers=self.workers,
            timeout=self.timeout,
            on_error=cast(Any, self.on_error),
            worst=self.worst_,
            maximize=self.maximize,
        )

    def _weights(self) -> Tensor | None:
        k = self.n_objectives_
        if isinstance(self.weights, int):
            return simplex_weights(k, self.weights)
        if self.weights is None:
            return None if k == 1 else torch.full((k,), 1 / k, dtype=torch.float64)
        weights = torch.tensor(list(self.weights), dtype=torch.float64)
        if weights.shape != (k,) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
            raise ValueError(f"weights={self.weights!r}, wanted {k} numbers of at least 0, not all zero: one for each column of y.")
        return weights / weights.sum()


def _has_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "US" or any(isinstance(one, str) for one in array.ravel()[:1000].tolist())
