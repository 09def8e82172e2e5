"""Optuna's samplers as searchers, and its pruners; optuna is imported when one is used."""

from .pruner import Pruner as Pruner
from .searcher import Optuna as Optuna
