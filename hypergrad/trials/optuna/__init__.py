"""Optuna's samplers as searchers; optuna is imported when one is used."""

from .searcher import Optuna as Optuna
