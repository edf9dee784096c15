"""Helios: tensors, gradients and devices. It knows nothing of GPTs, text or training runs."""

from pathlib import Path

__version__ = "0.1.0"

# Installed, the other rooms of the house lie in this folder. In a checkout they lie beside it, and this folder hides an
# installed package where the checkout comes first on the path.
_root = Path(__file__).resolve().parent.parent
_rooms = ("kernels", "model", "train", "cli", "bench")
if (_root / "pyproject.toml").is_file() and all((_root / room / "__init__.py").is_file() for room in _rooms):
    __path__.append(str(_root))
