"""Training: recipes, data, objectives, and a loop that can be killed and resumed."""

from .recipe import PRESETS, Recipe, Stage
from .sources import open_sources
from .trainer import StepReport, Trainer, prepare

__all__ = ["PRESETS", "Recipe", "Stage", "StepReport", "Trainer", "open_sources", "prepare"]
