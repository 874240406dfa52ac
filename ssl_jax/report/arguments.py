"""Parsing of the report's command lines."""

import argparse
from typing import NoReturn

from ssl_jax.types import InputError


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one line, as all errors here are said."""

  def error(self, message: str) -> NoReturn:  # noqa: D102
    raise InputError(f"{message}; see {self.prog} --help")
