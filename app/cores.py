"""How many processor cores this process may use; training asks, too."""

from model.cores import available_cores

__all__ = ["available_cores"]
