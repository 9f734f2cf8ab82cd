"""Where the problems of a submission are read: a file, or a set of a hub, in its own columns or by a recipe."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from pipeline.errors import ProblemSetError
from pipeline.jobs.recipes import RECIPES, Recipe, find_recipe
from pipeline.jobs.submission import Submission
from pipeline.problems import ColumnNames, ProblemSet, load_problem_set
from pipeline.problems.hub import HubSet, fetched, is_hub_set, parse_hub_set


def recipe_for(submission: Submission) -> Recipe | None:
    """The recipe that is named, or that of a set of a hub that has one, unless columns are named.

    Raises ConfigurationError for a name that there is not.
    """
    if submission.recipe:
        return find_recipe(submission.recipe)
    source = submission.problems
    if not isinstance(source, Path) or not is_hub_set(source) or submission.columns not in (None, ColumnNames()):
        return None
    return _recipe_of(parse_hub_set(str(source)))


def _recipe_of(wanted: HubSet) -> Recipe | None:
    """Of a set that has several configurations the recipe is of one."""
    for recipe in RECIPES.values():
        there = parse_hub_set(recipe.hub) if recipe.hub else None
        if there and there.repo.lower() == wanted.repo.lower() and wanted.config in (None, there.config):
            return recipe
    return None


def load_source(path: Path, recipe: Recipe | None, *, columns: ColumnNames, keep: Collection[str] = ()) -> ProblemSet:
    """The problems of a file, or of a set of a hub. Raises ProblemSetError."""
    if not is_hub_set(path):
        return recipe.load(path, keep=keep) if recipe else load_problem_set(path, columns=columns, keep=keep)
    wanted = _completed(parse_hub_set(str(path)), recipe)
    with fetched(wanted) as found:
        try:
            if recipe:
                read = recipe.load(found.path, keep=keep)
            else:
                name = Path(wanted.repo).name
                read = load_problem_set(found.path, name=name, columns=columns, keep=keep)
        except ProblemSetError as error:
            raise ProblemSetError(str(found.found), error.faults) from error
    return replace(read, source=str(found.found), origin=found.origin)


def _completed(wanted: HubSet, recipe: Recipe | None) -> HubSet:
    """With the configuration and the split of the recipe where it is for this set and they were not named."""
    if recipe is None or recipe.hub is None:
        return wanted
    there = parse_hub_set(recipe.hub)
    if there.repo.lower() != wanted.repo.lower():
        return wanted
    split = wanted.split or (there.split if wanted.config in (None, there.config) else None)
    return replace(wanted, config=wanted.config or there.config, split=split)
