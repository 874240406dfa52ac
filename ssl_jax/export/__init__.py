"""A trained model that stands alone: a folder of weights, one compiled-anywhere program and a description; `load` reads it."""

from ssl_jax.export.model import Model, load

__all__ = ["Model", "load"]
