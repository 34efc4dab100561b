"""A made-up world and language models small enough to train in a minute."""

from antidote_llm.miniature.build import Miniature, build
from antidote_llm.miniature.recipe import RECIPE_VERSION, Recipe, standard_attack
from antidote_llm.miniature.tasks import NEW_TASK
from antidote_llm.miniature.world import World

__all__ = ["NEW_TASK", "RECIPE_VERSION", "Miniature", "Recipe", "World", "build", "standard_attack"]
