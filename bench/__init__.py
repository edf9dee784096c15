"""Measurements: every primitive and whole training steps, beside numpy and PyTorch. See `helios-bench --help`."""
