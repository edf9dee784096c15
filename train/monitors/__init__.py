"""Monitors: they watch a run, measure its weights, score it, and may act on what they see."""
