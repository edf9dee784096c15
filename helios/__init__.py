"""Helios: tensors, gradients and devices. It knows nothing of GPTs, text or training runs."""

__version__ = "0.1.0"
