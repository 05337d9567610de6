"""Every index and every closed-form stitcher on plain arrays: a row is an image (or a position), a column a feature.

>>> import numpy as np
>>> from stitchgrid.api import measures
>>> rng = np.random.default_rng(0)
>>> x = rng.normal(size=(100, 8))
>>> round(measures.cka(x, x @ np.linalg.qr(rng.normal(size=(8, 8)))[0]), 6)
1.0
>>> measures.direct(x, 2 * x + 1).residual < 1e-12
True
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from stitchgrid.api.tables import Array, Matrix
from stitchgrid.errors import InputError
from stitchgrid.matchers.describe import describe
from stitchgrid.matchers.measures import fit_rows, gram_of_rows, index_of_rows
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import About, Fit, GramIndex, Kind, MomentIndex
from stitchgrid.matchers.registry import MATCHERS, kind_of
from stitchgrid.matchers.stitchers.affine import AffineMap, r_squared, residual
from stitchgrid.moments import PairMoments, pair_moments

Rows = Array | Tensor | Sequence[Sequence[float]]


class _Measure:
    """A kind of matcher, applied to arrays."""

    def __init__(self, kind: str):
        self.kind = kind
        self.about: About = kind_of(kind).about
        self.__name__ = kind
        self.__doc__ = _docstring(self.about)

    def __repr__(self) -> str:
        return f"<{self.about.family} {self.kind}: {self.about.summary}>"

    def _with(self, params: Mapping[str, Any]) -> Kind[Any]:
        try:
            return kind_of(self.kind)(self.about.params.model_validate(dict(params)))
        except ValidationError as problem:
            first = problem.errors()[0]
            name = ".".join(map(str, first["loc"]))
            known = ", ".join(self.about.params.model_fields) or "none"
            raise InputError(
                f"{self.kind}: parameter {name!r}: {first['msg'].lower()}; its parameters are {known}."
            ) from None


def _docstring(about: About) -> str:
    """Return the docstring of a kind: shapes, range, direction, bias, when not to use it, source, parameters."""
    lines = list(describe(about))
    at = next(position for position, line in enumerate(lines) if line.startswith("parameters:"))
    own, gives = lines[at:], "one number, float; NaN where it is undefined"
    if about.family == "stitcher":  # plain rows need no rules of alignment, and have no metrics of networks
        names = [name for name in about.params.model_fields if name not in Rules.model_fields]
        own = [f"parameter: {name} = {about.params.model_fields[name].default!r}" for name in names]
        gives = "a Stitch, T(a) = a W + b with W (D, E) and b (E,)"
    return "\n".join(
        [
            lines[0].partition(": ")[2].capitalize() + ".",
            "",
            "takes: x (N, D) of the source, y (N, E) of the target; a row is an image or a position",
            f"gives: {gives}",
            *lines[1:at],
            *own,
        ]
    )


class Index(_Measure):
    """An index: two sets of rows -> one number.

    Its docstring gives shapes, range, direction, bias, invariances, when not to use it, and source.
    """

    def __call__(self, x: Rows, y: Rows, **params: Any) -> float:
        """Return the index of two sets of rows of the same images; NaN where it is undefined.

        Args:
            x: (N, D) rows of the source, numpy or torch, of any floating type.
            y: (N, E) rows of the target.
            params: Parameters of the kind.

        Raises:
            InputError: If shapes do not fit, numbers are not finite, or a parameter is unknown.
        """
        return self.all(x, y, **params)[self.about.score]

    def all(self, x: Rows, y: Rows, **params: Any) -> dict[str, float]:
        """Return every metric of the kind, by name; arguments and errors are those of a call."""
        self._with(params)
        return index_of_rows(self.kind, *_pair(x, y, self.about), **params)

    def why_undefined(self, x: Rows, y: Rows, **params: Any) -> str | None:
        """Return why there is no value for two sets of rows, in words; None where there is one.

        >>> cka.why_undefined([[1.0], [1.0]], [[1.0], [2.0]])
        'cka is undefined: the rows of x are all the same'
        """
        try:
            if not math.isnan(self(x, y, **params)):
                return None
            rows = {"x": _rows(x, "x"), "y": _rows(y, "y")}
        except InputError as problem:
            return str(problem)
        flat = [name for name, found in rows.items() if bool((found == found[0]).all())]
        if flat:
            return f"{self.kind} is undefined: the rows of {' and of '.join(flat)} are all the same"
        return f"{self.kind} is undefined: what it divides by is 0 on these rows"

    def matrix(self, xs: Mapping[str, Rows], ys: Mapping[str, Rows], **params: Any) -> Matrix:
        """Return the index of every layer of one set with every layer of another.

        Args:
            xs: (N, D) rows of each source layer, by name.
            ys: (N, E) rows of each target layer.
            params: Parameters of the kind.

        Returns:
            The values; NaN where it is undefined, `Matrix.mask` is True there, and `Matrix.reasons` says why.

        Raises:
            InputError: As for a call; but pairs whose widths do not fit are NaN.
        """
        kind, score = self._with(params), self.about.score
        values, reasons = np.full((len(xs), len(ys)), np.nan), dict[tuple[str, str], str]()
        read = {f: _rows(x, "x") for f, x in xs.items()}, {g: _rows(y, "y") for g, y in ys.items()}
        for (f, x), (g, y) in product(read[0].items(), read[1].items()):
            if (reason := self.about.why_not_widths((f, x.shape[1]), (g, y.shape[1]))) is not None:
                reasons[f, g] = reason
        if reasons:
            for (k, (f, x)), (m, (g, y)) in product(enumerate(read[0].items()), enumerate(read[1].items())):
                values[k, m] = np.nan if (f, g) in reasons else self(x, y, **params)
            return self._told(values, xs, ys, reasons, params)
        pairs = [_pair(x, y, self.about) for x in xs.values() for y in ys.values()]
        if isinstance(kind, MomentIndex):
            values[:] = np.reshape([float(kind.compare([pair_moments(*xy)])[score][0]) for xy in pairs], values.shape)
        elif pairs:
            assert isinstance(kind, GramIndex)
            prepared = [
                [kind.prepare(gram_of_rows(rows)) for rows in some]
                for some in ([x for x, _ in pairs[:: len(ys)]], [y for _, y in pairs[: len(ys)]])
            ]
            compared = kind.compare([(x, y) for x in prepared[0] for y in prepared[1]])[score]
            values[:] = compared.reshape(values.shape).numpy()
        return self._told(values, xs, ys, reasons, params)

    def _told(
        self,
        values: Array,
        xs: Mapping[str, Rows],
        ys: Mapping[str, Rows],
        reasons: dict[tuple[str, str], str],
        params: Mapping[str, Any],
    ) -> Matrix:
        for (k, f), (m, g) in product(enumerate(xs), enumerate(ys)):
            if np.isnan(values[k, m]) and (f, g) not in reasons:
                reasons[f, g] = self.why_undefined(xs[f], ys[g], **params) or ""
        higher = self.about.metric(self.about.score).higher_is_similar
        return Matrix(values, list(xs), list(ys), title=self.kind, higher_is_similar=higher, reasons=reasons)


class Stitcher(_Measure):
    """A closed-form stitcher: two sets of rows -> an affine map from the first into the second.

    Its docstring gives shapes, bias, parameters, invariances, when not to use it, and source.
    """

    def __call__(self, x: Rows, y: Rows, **params: Any) -> "Stitch":
        """Return the map from x into y.

        Args:
            x: (N, D) rows of the source, on which the map is fitted.
            y: (N, E) rows of the target, of the same images.
            params: Parameters of the kind.

        Raises:
            InputError: If shapes do not fit, numbers are not finite, a parameter is unknown, or nothing can be fitted.
        """
        self._with(params)
        x_ND, y_NE = _pair(x, y, self.about)
        try:
            fit = fit_rows(self.kind, x_ND, y_NE, **params)
        except ValueError as problem:
            raise InputError(f"{self.kind}: {problem}") from problem
        return Stitch(self.kind, fit, x_ND, y_NE)


class Stitch:
    """A fitted map T(a) = a W + b.

    Attributes:
        kind: The stitcher that found it.
        weight: W (D, E), float64.
        bias: b (E,), float64.
        flags: Names of its flags, such as `underdetermined`.
        values: Other numbers that the kind found, such as ridge's `strength`.
    """

    def __init__(self, kind: str, fit: Fit, x_ND: Tensor, y_NE: Tensor):
        self.kind, self._map, self._rows = kind, fit.map.double(), (x_ND, y_NE)
        self.weight: Array = self._map.weight_DE.numpy()
        self.bias: Array = self._map.bias_E.numpy()
        self.flags = tuple(sorted(name for name, is_set in fit.doubts.items() if bool(is_set)))
        self.values = {name: float(value) for name, value in fit.values.items()}

    def __call__(self, x: Rows) -> Array:
        """Return T of rows (..., D): (..., E), float64."""
        mapped: Array = self._map(_rows(x, "x").double()).numpy()
        return mapped

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.weight.shape[0]} -> {self.weight.shape[1]}, residual {self.residual:.4g}>"

    @cached_property
    def _moments(self) -> PairMoments:
        return pair_moments(*self._rows)

    @cached_property
    def residual(self) -> float:
        """||T(X) - Y||^2 / ||Y||^2 on the fit rows: 0 where the map reproduces Y; NaN where Y is 0."""
        return float(residual(self._map, self._moments))

    @cached_property
    def r2(self) -> float:
        """1 - ||T(X) - Y||^2 / ||Y - mean(Y)||^2 on the fit rows; NaN where Y is constant."""
        return float(r_squared(self._map, self._moments))

    def residual_on(self, x: Rows, y: Rows) -> float:
        """Return the residual on other rows (N, D) and (N, E); NaN where y is 0.

        Raises:
            InputError: If shapes do not fit, or numbers are not finite.
        """
        x_ND, y_NE = _pair(x, y, kind_of(self.kind).about)
        return float(residual(self._map, pair_moments(x_ND, y_NE)))

    @property
    def map(self) -> AffineMap:
        """The map for torch: call it with a tensor of rows (..., D)."""
        return self._map


def _measure(about: About) -> Index | Stitcher:
    return Index(about.kind) if about.family == "index" else Stitcher(about.kind)


def _pair(x: Rows, y: Rows, about: About) -> tuple[Tensor, Tensor]:
    """Return both as tensors that fit together.

    Raises:
        InputError: If they do not.
    """
    x_ND, y_NE = _rows(x, "x"), _rows(y, "y")
    (num, width), (num_y, width_y) = x_ND.shape, y_NE.shape
    if num != num_y:
        raise InputError(f"{about.kind} wants rows of the same images in x and y, got {num} and {num_y}.")
    if num < about.fewest_images:
        raise InputError(f"{about.kind} wants at least {about.fewest_images} rows, got {num}.")
    if (reason := about.why_not_widths(("x", width), ("y", width_y))) is not None:
        raise InputError(f"{reason}.")
    return x_ND, y_NE


def _rows(rows: Rows, name: str) -> Tensor:
    """Return rows as a tensor on the CPU, detached from any graph.

    Raises:
        InputError: If they are not a matrix of finite numbers.
    """
    try:
        found = rows.detach().cpu() if isinstance(rows, Tensor) else torch.as_tensor(np.asarray(rows))
    except (TypeError, ValueError) as problem:
        raise InputError(f"{name} must be an array of numbers (rows, features): {problem}.") from problem
    if found.dim() != 2 or math.prod(found.shape) == 0:
        raise InputError(
            f"{name} must have the shape (rows, features), got {tuple(found.shape)}; flatten or pool further axes."
        )
    found = found if found.is_floating_point() else found.double()
    if not bool(found.isfinite().all()):
        raise InputError(f"{name} has inf or NaN; leave these rows out of both x and y.")
    return found


# from the code: measures
direct: Stitcher
orthogonal: Stitcher
ridge: Stitcher
reduced_rank: Stitcher
permutation: Stitcher
cka: Index
cka_unbiased: Index
cka_rbf: Index
pwcca: Index
svcca: Index
mean_cca: Index
procrustes: Index
linear_regression: Index
soft_matching: Index
rsa: Index
mutual_knn: Index
jaccard_knn: Index
# end

# A measure of each kind, so that none has to be written here.
globals().update((kind, _measure(about)) for kind, about in MATCHERS.items() if not about.is_trained)
