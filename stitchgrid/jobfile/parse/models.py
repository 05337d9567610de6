"""Reads the tables [[models]] and [recipes]."""

import json
from collections.abc import Mapping
from typing import Any

from stitchgrid.errors import nearest
from stitchgrid.jobfile.naming import STEP_FIELD
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.tables import ModelTable, RecipeTable
from stitchgrid.jobfile.values import check_name
from stitchgrid.records import FEATURES


def read_recipes(table: Mapping[str, Any], problems: Problems) -> dict[str, RecipeTable | None]:
    """Return the recipes by name, None for unusable ones; note their problems."""
    recipes = table.get("recipes", {})
    if not isinstance(recipes, Mapping):
        problems.add("recipes", "write each as [recipes.NAME]")
        return {}
    for name in recipes:
        try:
            check_name(name)
        except ValueError as problem:
            problems.add(f"recipes.{name}", str(problem))
    return {name: problems.check(RecipeTable, recipe, f"recipes.{name}") for name, recipe in recipes.items()}


NOT_OF_FEATURES = ("head", "inputs", "output", "preprocess", "seed")  # keys that say how a network is run


def read_model(item: Any, where: str, recipes: Mapping[str, object], problems: Problems) -> ModelTable | None:
    """Return a network's table, None if it is unusable; note its problems."""
    if isinstance(item, Mapping) and item.get("architecture") == FEATURES:
        item = _features(item, where, problems)
    model = problems.check(ModelTable, item, where)
    if not isinstance(item, Mapping):
        return None
    seeds, steps, weights = item.get("seeds"), item.get("steps"), item.get("weights", "random")
    if seeds is not None and item.get("seed") is not None:
        problems.add(f"{where}.seed", "give `seed` for one network or `seeds` for several, not both")
    if steps is not None and not STEP_FIELD.search(json.dumps(weights)):
        what = "`steps` name checkpoints of one training: put {step} (or {step:06}, with leading zeros) into `weights`"
        problems.add(f"{where}.weights", f"{what}, got {weights!r}")
    if isinstance(weights, Mapping) and "train" in weights:
        if isinstance(name := weights.get("train"), str) and name not in recipes:
            problems.add(f"{where}.weights", f"no [recipes.{name}]; {nearest(name, recipes)}")
        return model
    if isinstance(weights, Mapping):
        weights = weights.get("file", "random")
    if isinstance(seeds, list) and len(seeds) > 1 and weights != "random" and "{seed}" not in str(weights):
        what = f"{weights!r} is the same for all `seeds`; put {{seed}} where the paths differ"
        problems.add(f"{where}.weights", what)
    return model


def _features(item: Mapping[str, Any], where: str, problems: Problems) -> Mapping[str, Any]:
    """Return an entry of features, with its files under `weights`, even if it names them under `features`."""
    for key in NOT_OF_FEATURES:
        if item.get(key):
            problems.add(
                f"{where}.{key}",
                "features are read from files, and no network is run, so the key has no effect; leave it out",
            )
    if "features" in item and "weights" in item:
        problems.add(f"{where}.features", "`weights` names the files already; leave one of them out")
    item = {key: value for key, value in item.items() if key != "features"} | (
        {"weights": item["features"]} if "features" in item else {}
    )
    weights = item.get("weights")
    if isinstance(weights, Mapping) or weights == "random":
        problems.add(f"{where}.weights", "a file or folder of activations is wanted for features, got " + repr(weights))
    return item
