"""Semi-supervised methods, one file each.

A method file defines `Options`, a frozen dataclass whose fields are the keys of `config.method`, and
`build(options, networks, optimizer, task) -> Method`. It is found by its file name; nothing else needs to know of it.
"""

import importlib
import pkgutil
from types import ModuleType

from ssl_jax.types import InputError, nearest, shown


def names() -> tuple[str, ...]:
  """Returns the names of all methods."""
  return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: object) -> ModuleType:
  """Returns the module of a method.

  Raises:
    InputError: no such method; the message says the nearest name.
  """
  if name not in names():
    raise InputError(f"config.method.name: no method {shown(name)}; {nearest(str(name), names())}")
  return importlib.import_module(f"{__name__}.{name}")
