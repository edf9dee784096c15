"""The GPT: its configuration, forward pass, sampling and file. It knows tensors, nothing of training runs."""

from helios.model.config import GPTConfig
from helios.model.gpt import GPT
from helios.model.sampling import Sampler, sample

__all__ = ["GPT", "GPTConfig", "Sampler", "sample"]
