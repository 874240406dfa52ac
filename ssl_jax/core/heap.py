"""Order in malloc's heap, where XLA:CPU takes a step's memory in one block and gives it back after the step."""

import contextlib
import ctypes
import functools
import os
import sys
import threading
from typing import Self

import numpy as np

_ALL_ROOMS = 8 << 30  # bytes; as much as decoded scans take
_LARGEST_ROOM = 1 << 29
_MOST_ROOMS = 32  # each touches a page, which may be of 2 MiB
_PIN = 1 << 16
_PAGE = 1 << 12  # the system's smallest
_PIECE = 1 << 22  # bytes, which take milliseconds to touch

_largest_block = 0  # bytes, for which the heap of this process has been arranged


def keeps_what_is_freed() -> bool:
  """Whether this process has one heap that keeps what is freed, as `main.MALLOC` has it."""
  return "mmap_max=0" in os.environ.get("GLIBC_TUNABLES", "")


def trim() -> None:
  """Hands the holes that compiling or loading a program leaves in glibc's heap back to the system; a step's one block fits into none."""
  if sys.platform == "linux":
    with contextlib.suppress(AttributeError):  # another C library
      ctypes.CDLL(None).malloc_trim(0)


class Room:
  """Sees to it that every step of a run finds the block that the step before has left, in a heap that keeps what is freed.

  malloc serves a request from the smallest free chunk that holds it, so between two steps it carves the next scan out of the block. The
  step after no longer fits there and takes as much again. So this leaves smaller chunks for the scans, and behind the block room larger
  than these, since XLA asks for some bytes more than it keeps and they would be gone. All that is address space: nothing touches it unused.

  Used as `with Room() as room:` around the loading of a step. In the meantime another thread touches the block, as a virtual machine may
  need seconds to hand out a GiB, for which the first step would wait. Where the heap does not keep what is freed, nothing happens.
  """

  def __init__(self) -> None:
    self._block: int | None = None
    self._room_bytes = 0
    self._enough = threading.Event()
    self._touching = threading.Thread()

  def __enter__(self) -> Self:
    return self

  def take(self, block_bytes: int) -> None:
    """Takes what a step takes, once. A later phase's block that is up to half larger will go to the same place."""
    global _largest_block
    if sys.platform != "linux" or not keeps_what_is_freed() or block_bytes <= _largest_block or self._block:
      return
    _largest_block = block_bytes + block_bytes // 2
    self._room_bytes = min(max(block_bytes // 2, _PIN), _LARGEST_ROOM)
    self._block = _libc().malloc(_largest_block + self._room_bytes + self._room_bytes // 4)
    if self._block:
      most = block_bytes // 4 * 3  # with what loading needs for a moment not more than the step
      self._touching = threading.Thread(target=_touch, args=(self._block, most, self._enough), daemon=True)
      self._touching.start()

  def __exit__(self, *_: object) -> None:
    if self._block:
      self._enough.set()
      self._touching.join()
    trim()
    if not self._block:
      return
    libc = _libc()
    # No two alike, so that what a step needs for a moment always comes from the smallest: memory that is touched, and in the cache.
    sizes = [self._room_bytes + i * _PIN for i in range(min(_MOST_ROOMS, _ALL_ROOMS // self._room_bytes))]
    rooms = [libc.malloc(_PIN + size) for size in sizes]
    for room in filter(None, rooms):
      libc.realloc(room, _PIN)  # in place; what stays keeps its neighbours from becoming one chunk
    libc.free(self._block)


def _touch(block: int, most: int, enough: threading.Event) -> None:
  held = np.ctypeslib.as_array((ctypes.c_ubyte * most).from_address(block))  # which lets go of the interpreter while it writes
  for start in range(0, most, _PIECE):
    if enough.is_set():
      return
    held[start : start + _PIECE : _PAGE] = 0


@functools.cache
def _libc() -> ctypes.CDLL:
  libc = ctypes.CDLL(None)
  libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
  libc.realloc.argtypes, libc.realloc.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p
  libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
  return libc
