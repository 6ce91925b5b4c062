"""Training: recipes, data, objectives, and a loop that can be killed and resumed."""

from .prepare import prepare
from .recipe import PRESETS, Recipe, Stage
from .sources import open_sources
from .trainer import StepReport, Trainer

__all__ = ["PRESETS", "Recipe", "Stage", "StepReport", "Trainer", "open_sources", "prepare"]
