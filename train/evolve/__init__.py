"""Experiments made of runs: configs that evolve."""
