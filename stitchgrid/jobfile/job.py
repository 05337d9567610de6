"""`Job`: a valid job file, and what it asks for in terms of records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stitchgrid.datasets.registry import own_parts
from stitchgrid.jobfile.comparison_tables import ControlsTable, DiagnosticsTable, GridTable, IntervalsTable, ProbesTable
from stitchgrid.jobfile.naming import filled, named_networks
from stitchgrid.jobfile.tables import (
    CheckpointTable,
    DataTable,
    LimitsTable,
    ModelTable,
    NumericsTable,
    RecipeTable,
    TrainTable,
)
from stitchgrid.matchers.params import Params
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import DataSpec, EnergyRecipe, MatcherSpec, NetworkSpec, ProbeSpec, canonical


def as_words(ranks: Sequence[int | None]) -> list[int | str]:
    """Return ranks as a job file has them.

    >>> as_words([None, 8])
    ['full', 8]
    """
    return ["full" if rank is None else rank for rank in ranks]


@dataclass(frozen=True, kw_only=True)
class MatcherEntry:
    """One [[matchers]] entry."""

    kind: str
    params: Params  # of the kind, after defaults
    seeds: tuple[int, ...] | None  # None: the kind is not trained
    samples: int | str | None  # "all": the whole split; None: of a stitcher as many as `fit` has, of an index all
    metrics: tuple[str, ...]  # in the kind's order
    ranks: tuple[int | None, ...] = (None,)  # of the source; None: the source as it is
    energy: EnergyRecipe | None = None  # if a metric asks for it; the job decides its samples

    def specs(self, *, fit_samples: int | None, energy: EnergyRecipe | None = None) -> tuple[MatcherSpec, ...]:
        """Return one record per rank and seed.

        `fit_samples` is `samples` of `fit` under [data], None if that is the whole split. `energy` is the recipe of
        detectors, for matchers that ask for them.
        """
        detector = {"energy": asdict(energy)} if self.energy and energy else {}  # it decides values: part of addresses
        params = {**self.params.for_address(), **detector}
        return tuple(
            MatcherSpec(
                kind=self.kind,
                revision=MATCHERS[self.kind].revision,
                params=canonical(params if rank is None else params | {"rank": rank}),
                seed=seed,
                samples=self._spec_samples(fit_samples),
                metrics=self.metrics,
            )
            for rank in self.ranks
            for seed in self.seeds or (None,)
        )

    def _spec_samples(self, fit_samples: int | None) -> int | str | None:
        """Return `samples` of a record, written as version 0.1.0 wrote it wherever it could (see `MatcherSpec`)."""
        matcher = MATCHERS[self.kind]
        if matcher.is_trained:
            return fit_samples if self.samples is None else None if self.samples == "all" else self.samples
        is_default = fit_samples is None if matcher.family == "stitcher" else matcher.most_images is None
        return None if self.samples == "all" and is_default else self.samples

    def to_dict(self, *, has_fit_samples: bool) -> dict[str, Any]:
        """Return the entry as a table of a job file.

        If `fit` has a number of samples, a trained kind that takes as many gets `samples = "fit"`: without it, jobs
        that version 0.1.0 stored take the whole split.
        """
        ranks = None if self.ranks == (None,) else as_words(self.ranks)
        samples = self.samples
        if samples is None and has_fit_samples and MATCHERS[self.kind].is_trained:
            samples = "fit"
        optional = {"seeds": self.seeds and list(self.seeds), "samples": samples, "rank": ranks}
        given = {key: value for key, value in optional.items() if value is not None}
        return {"kind": self.kind, **self.params.model_dump(mode="json"), **given, "metrics": list(self.metrics)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A valid job file. Only the file itself has been checked: its networks and images may not exist."""

    base: Path  # folder of the job file, absolute: where its relative paths start
    name: str
    seed: int
    data: DataTable
    numerics: NumericsTable
    models: tuple[ModelTable, ...]
    recipes: dict[str, RecipeTable]
    grid: GridTable
    matchers: tuple[MatcherEntry, ...]  # with what the diagnostics add to their metrics
    diagnostics: DiagnosticsTable
    probes: ProbesTable | None = None
    controls: ControlsTable = field(default_factory=ControlsTable)
    intervals: IntervalsTable = field(default_factory=IntervalsTable)
    limits: LimitsTable = field(default_factory=LimitsTable)

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain JSON, from which `parse_job` makes an equal one; its folder is the key `base`."""
        diagnostics = self.diagnostics.model_dump(mode="json", exclude_defaults=True)
        limits = self.limits.model_dump(mode="json", exclude_defaults=True)
        controls = self.controls.model_dump(mode="json", exclude_defaults=True)
        intervals = self.intervals.model_dump(mode="json", exclude_defaults=True)
        has_fit_samples = self.data.fit.samples is not None
        if has_fit_samples and self.diagnostics.energy.samples is None and any(m.energy for m in self.matchers):
            diagnostics["energy"] = {**diagnostics.get("energy", {}), "samples": "fit"}
        return {
            "base": str(self.base),
            "name": self.name,
            "seed": self.seed,
            "data": self.data.model_dump(mode="json", exclude_none=True),
            "numerics": self.numerics.model_dump(mode="json"),
            "models": [model.to_dict() for model in self.models],
            "recipes": {
                name: recipe.model_dump(mode="json", exclude_none=True) for name, recipe in self.recipes.items()
            },
            "grid": self.grid.model_dump(mode="json"),
            "matchers": [matcher.to_dict(has_fit_samples=has_fit_samples) for matcher in self.matchers],
            **({"probes": self._probes_dict(self.probes)} if self.probes else {}),
            **({"diagnostics": diagnostics} if diagnostics else {}),
            **({"controls": controls} if controls else {}),
            **({"intervals": intervals} if intervals else {}),
            **({"limits": limits} if limits else {}),
        }

    @staticmethod
    def _probes_dict(probes: ProbesTable) -> dict[str, Any]:
        return {**probes.model_dump(mode="json", exclude_none=True), "rank": as_words(probes.rank)}

    def probe_spec(self) -> ProbeSpec | None:
        """Return the probes the job asks for, if any."""
        return None if self.probes is None else self.probes.to_record()

    def data_spec(self) -> DataSpec:
        """Return which images the job draws."""
        data = self.data
        return DataSpec(
            dataset=self._dataset(data.dataset),
            root=self._absolute(data.root),
            seed=self.seed,
            fit_split=data.fit.split,
            fit_samples=data.fit.samples,
            eval_split=data.eval.split,
            eval_samples=data.eval.samples,
            on_bad_image=data.on_bad_image,
            download=data.download,
            range=data.range,
            classes=data.classes,
            class_order=data.class_order or "sorted",
            args=canonical(data.args or {}),
            limits=self.limits.to_record(),
            labels="none" if data.labels == "none" else "classes",
            keys=canonical(data.keys.model_dump(exclude_none=True) if data.keys else {}),
            folder=self._absolute(data.folder),
            channels=data.channels,
            axes=data.axes,
        )

    def outliers_spec(self) -> DataSpec | None:
        """Return the images of another data set that detectors take as outliers, as evaluation images, if any."""
        outliers = self.data.outliers
        if outliers is None or not any(matcher.energy for matcher in self.matchers):
            return None
        return DataSpec(
            dataset=self._dataset(outliers.dataset),
            root=self._absolute(outliers.root),
            seed=self.seed,
            fit_split="",
            eval_split=outliers.split,
            eval_samples=outliers.samples,
            on_bad_image=self.data.on_bad_image,
            range=outliers.range,
            channels=outliers.channels,
            axes=outliers.axes,
            args=canonical(outliers.args or {}),
            limits=self.limits.to_record(),
        )

    def _dataset(self, word: str) -> str:
        """Return the word for a data set; a user's own file gets its absolute path."""
        parts = own_parts(word)
        return word if parts is None else f"{self._absolute(parts[0])}:{parts[1]}"

    def _absolute(self, path: str | None) -> str | None:
        return None if path is None else str((self.base / Path(path).expanduser()).resolve())

    def network_specs(self) -> tuple[NetworkSpec, ...]:
        """Return the networks in the order of the file, an entry with seeds giving one per seed; then all twins."""
        named = self._named_specs()
        return (*named, *(spec.twin for spec in self._with_twins(named)))

    def _named_specs(self) -> list[NetworkSpec]:
        return [spec for model in self.models for spec in self._specs(model)]

    def _with_twins(self, named: Sequence[NetworkSpec]) -> list[NetworkSpec]:
        """Return the networks that get an untrained twin: those that are not untrained themselves."""
        return [spec for spec in named if self.controls.untrained and not (spec.is_untrained or spec.is_features)]

    def matcher_specs(self, *, num_fit: int | None = None) -> tuple[MatcherSpec, ...]:
        """Return the matchers in the order of the file, a trained one once per seed.

        `num_fit` is the number of images in the fit split, if known: as many samples or more mean the whole split.
        """
        fit_samples, energy = self._fit_samples(num_fit), self.energy_recipe(num_fit=num_fit)
        return tuple(
            spec for matcher in self.matchers for spec in matcher.specs(fit_samples=fit_samples, energy=energy)
        )

    def energy_recipe(self, *, num_fit: int | None = None) -> EnergyRecipe | None:
        """Return the recipe of detectors, None if no matcher asks for them; `num_fit` as in `matcher_specs`."""
        recipe = next((matcher.energy for matcher in self.matchers if matcher.energy), None)
        asked = self.diagnostics.energy.samples
        if recipe is None or isinstance(asked, int):
            return recipe
        return replace(recipe, samples=None if asked == "all" else self._fit_samples(num_fit))

    def _fit_samples(self, num_fit: int | None) -> int | None:
        asked = self.data.fit.samples
        return None if asked is not None and num_fit is not None and asked >= num_fit else asked

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the (source, target) pairs, each once, as positions in `network_specs()`.

        A twin is a source for every target of its network, and never a target.
        """
        specs = self._named_specs()
        pairs = self._named_pairs(specs)
        originals = [specs.index(spec) for spec in self._with_twins(specs)]
        twins = {original: len(specs) + position for position, original in enumerate(originals)}
        return (*pairs, *((twins[f], g) for f, g in pairs if f in twins))

    def _named_pairs(self, specs: Sequence[NetworkSpec]) -> tuple[tuple[int, int], ...]:
        if isinstance(self.grid.pairs, str):
            kept = {"all": (True, False), "within": (True,), "across": (False,)}[self.grid.pairs]  # by whether f = g
            return tuple((f, g) for f in range(len(specs)) for g in range(len(specs)) if (f == g) in kept)
        positions: dict[str, list[int]] = {}
        for position, spec in enumerate(specs):
            for word in {spec.name, spec.entry}:
                positions.setdefault(word, []).append(position)
        named = ((f, g) for source, target in self.grid.pairs for f in positions[source] for g in positions[target])
        return tuple(dict.fromkeys(named))

    def _specs(self, model: ModelTable) -> list[NetworkSpec]:
        given = model.weights if isinstance(model.weights, CheckpointTable) else CheckpointTable(file="")
        recipe = self.recipes[model.weights.train].to_record() if isinstance(model.weights, TrainTable) else None
        # A word under `file` is a file of that name, not weights of that name, unless an adapter is merged into them.
        is_name = given.file.isidentifier() and given.adapter is None
        file = f"./{given.file}" if is_name else given.file
        if isinstance(model.weights, str):
            file = model.weights
        return [
            NetworkSpec(
                name=name,
                entry=model.name,
                architecture=model.architecture,
                args=canonical(model.args),
                weights=filled(file, seed, step),
                weights_key=given.key and filled(given.key, seed, step),
                weights_strip=given.strip,
                weights_adapter=given.adapter and filled(given.adapter, seed, step),
                recipe=recipe,
                seed=seed,
                preprocess=model.preprocess.to_record() if model.preprocess else None,
                layers=model.layers,
                base=str(self.base),
                head=model.head,
                interface=model.interface,
                limits=self.limits.to_record(),
            )
            for name, seed, step in named_networks(model.name, model.seeds, model.seed or 0, model.steps)
        ]
