"""Damaged and hostile inputs: the valid files they start from, ways to change them, and what every reader must do with them."""

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import signal
import struct
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import jax
import jax.export
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import safetensors.numpy
from hypothesis import strategies as st

from ssl_jax.data import batches, make_split, open_source
from ssl_jax.export.model import DESCRIPTION, FORMAT, PROGRAM, WEIGHTS
from ssl_jax.types import DataConfig, InputError

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.6, 0.1, 0, 30], [0.1, 0.62, 0, 12.5], [0, 0, 1.2, 7], [0, 0, 0, 1]])
CLASSES = ("background", "organ", "vessel")
FOLDER = object()  # in place of a file's bytes: a folder of its name
MOST_SECONDS = 10  # of computing; waiting for something may take six times as long, since the machine may be busy
FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 0.5, 1.5, 1e-30, -1e30, 1e30, 3.4e38)
INTEGERS = (-32768, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 64, 255, 256, 512, 1024, 1792, 2048, 2304, 30000, 32767)
# Of a NIfTI-1 header: offset, format, count.
FIELDS: dict[str, tuple[int, str, int]] = {
  "sizeof_hdr": (0, "i", 1),
  "dim": (40, "h", 8),
  "intent_code": (68, "h", 1),
  "datatype": (70, "h", 1),
  "bitpix": (72, "h", 1),
  "pixdim": (76, "f", 8),
  "vox_offset": (108, "f", 1),
  "scl_slope": (112, "f", 1),
  "scl_inter": (116, "f", 1),
  "xyzt_units": (123, "b", 1),
  "qform_code": (252, "h", 1),
  "sform_code": (254, "h", 1),
  "quatern": (256, "f", 6),
  "srow": (280, "f", 12),
  "magic": (344, "i", 1),
  "extension": (348, "i", 1),
}
Files = dict[str, Any]


class Hang(BaseException):
  """An example has taken longer than anything may."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
  def stop(number: int, frame: Any) -> None:
    raise Hang(f"has not ended within {MOST_SECONDS} s")

  timers = ((signal.SIGPROF, signal.ITIMER_PROF, MOST_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 6 * MOST_SECONDS))
  before = [signal.signal(kind, stop) for kind, _, _ in timers]
  for _, timer, seconds in timers:
    signal.setitimer(timer, seconds)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", RuntimeWarning)
      yield
  finally:
    for (kind, timer, _), handler in zip(timers, before, strict=True):
      signal.setitimer(timer, 0)
      signal.signal(kind, handler)


@contextlib.contextmanager
def written(files: Mapping[str, Any]) -> Iterator[Path]:
  """The files below a folder that is removed afterwards."""
  root = Path(tempfile.mkdtemp(prefix="ssl_jax_fuzz_"))
  try:
    for name, content in files.items():
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      if content is FOLDER:
        path.mkdir()
      elif isinstance(content, Path):
        path.symlink_to(content)
      elif callable(content):
        content(path)
      elif content is not None:
        path.write_bytes(content)
    yield root
  finally:
    shutil.rmtree(root)


def fuzz(share: float, default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
  """Runs a test on `default` examples, the same every time, or on a share of what SSL_JAX_FUZZ says."""
  count = max(round(share * int(os.environ.get("SSL_JAX_FUZZ", 0))), default)
  return hypothesis.settings(
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,  # `time_limit`
    phases=[phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate", "shrink")],
    suppress_health_check=list(hypothesis.HealthCheck),
  )


class Tally(Counter):
  """How many examples worked and how many were refused, by test."""

  def outcome(self, test: str, use: Callable[[], Any], names: tuple[str, ...]) -> Any:
    """Returns what `use` does; `None` for an `InputError`, which must be one line that says one of `names`."""
    with time_limit():
      try:
        found = use()
      except InputError as error:
        message = str(error)
        assert any(name in message for name in names), f"the message names neither file nor key: {message[:500]}"
        assert "\n" not in message and len(message) < 3000, message[:500]
        self[test, "refused"] += 1
        return None
    self[test, "worked"] += 1
    return found

  def check(self, test: str) -> None:
    worked, refused = self[test, "worked"], self[test, "refused"]
    print(f"{test}: {worked + refused} examples, {worked} worked, {refused} refused")
    assert worked and refused


def read_everything(cfg: DataConfig) -> dict[str, Any]:
  """What a run does with its data: every case loaded, one batch drawn. Checks what must hold of any of them."""
  source = open_source(cfg)
  split = make_split(cfg, source)
  cases = {name: source.load(name) for name in source.names}
  sizes = {"batch_labelled": 2, "batch_unlabelled": 2, "start_step": 0, "num_steps": 1, "num_threads": 0}
  (batch,) = batches(cfg, source, split, seed=0, **sizes)
  for case in cases.values():
    assert np.isfinite(case.image).all() and case.image.dtype == np.float32 and case.image.shape[-1] == source.channels
    assert np.isfinite(case.affine).all() and case.affine.shape == (4, 4)
    assert len(case.spacing) == case.image.ndim - 1 and all(0 < side < math.inf for side in case.spacing)
    if case.label is not None:
      assert case.label.shape == case.image.shape[:-1] and case.label.dtype == np.uint8 and case.label.max() < source.num_classes
  for part in batch.values():
    assert part["image"].shape == (2, *cfg.patch, source.channels) and np.isfinite(part["image"]).all()
  assert batch["labelled"]["label"].min() >= 0 and batch["labelled"]["label"].max() < source.num_classes
  return {"source": source, "split": split, "cases": cases}


# --- valid inputs


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  label = rng.integers(0, len(CLASSES), shape).astype(np.uint8)
  return (100 * label + rng.integers(-30, 30, shape)).astype(np.int16), label


def nifti(array: np.ndarray, *, kind: Any = nib.Nifti1Image, affine: np.ndarray = AFFINE, slope: float | None = None) -> bytes:
  """A NIfTI file, not compressed."""
  image = kind(array, affine)
  if slope is not None:
    image.header.set_slope_inter(slope, -3.0)
  return image.to_bytes()


def packed(raw: bytes) -> bytes:
  return gzip.compress(raw, 1, mtime=0)


def description(form: str = "new") -> dict[str, Any]:
  if form == "old":
    return {
      "name": "heart",
      "modality": {"0": "MRI"},
      "labels": {str(value): name for value, name in enumerate(CLASSES)},
      "numTraining": 3,
      "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in "ab"],
      "test": ["./imagesTs/x.nii.gz"],
    }
  names = {name: value for value, name in enumerate(CLASSES)}
  return {"channel_names": {"0": "MR"}, "labels": names, "numTraining": 3, "file_ending": ".nii.gz"}


def msd_files(form: str = "new") -> Files:
  files: Files = {"dataset.json": json.dumps(description(form)).encode()}
  for seed, case in enumerate("abcd"):
    image, label = scan(seed)
    if case in "bc":
      image = image.astype(np.float32)
    kind = nib.Nifti2Image if case == "c" else nib.Nifti1Image
    raw = nifti(image, kind=kind, slope=0.5 if case == "a" else None)
    ending = "nii" if case == "b" else "nii.gz"
    files[f"imagesTr/{case}.{ending}"] = raw if case == "b" else packed(raw)
    if case != "d":
      files[f"labelsTr/{case}.nii.gz"] = packed(nifti(label))
  if form == "old":
    files["imagesTr/b.nii.gz"] = packed(files.pop("imagesTr/b.nii"))
  return files


def h5(image: Any, label: Any = None, **attributes: Any) -> bytes:
  stream = io.BytesIO()
  with h5py.File(stream, "w") as file:
    for key, array in (("image", image), ("label", label)):
      if array is not None:
        file.create_dataset(key, data=array, compression="gzip" if np.ndim(array) else None)
    file.attrs.update(attributes)
  return stream.getvalue()


def h5_files() -> Files:
  files: Files = {"train.list": b"a\nb\nc\nd\n"}
  for seed, case in enumerate("abcd"):
    image, label = scan(seed)
    files[f"{case}/mri_norm2.h5"] = h5(image.astype(np.float32), None if case == "d" else (label > 0).astype(np.uint8))
  return files


def nrrd_files() -> Files:
  """Raw challenge files; the library that writes them is optional."""
  try:
    import nrrd
  except ImportError:
    return {"a/lgemri.nrrd": b"", "a/laendo.nrrd": b""}
  header = {"space": "left-posterior-superior", "space directions": np.diag([0.6, 0.7, 1.2]), "space origin": np.arange(3.0)}
  files: Files = {}
  for seed, case in enumerate("abc"):
    image, label = scan(seed)
    for kind, array in (("lgemri", image), ("laendo", (255 * (label > 0)).astype(np.uint8))):
      if case != "c" or kind == "lgemri":
        stream = io.BytesIO()
        nrrd.write(stream, array, {**header, "encoding": "raw" if case == "b" else "gzip"})
        files[f"{case}/{kind}.nrrd"] = stream.getvalue()
  return files


def npz(**arrays: Any) -> bytes:
  stream = io.BytesIO()
  np.savez_compressed(stream, allow_pickle=True, **arrays)
  return stream.getvalue()


def npz_files() -> Files:
  files: Files = {}
  for volume in range(1, 4):
    image, label = scan(volume)
    for k in range(2):
      files[f"train_npz/case000{volume}_slice00{k}.npz"] = npz(image=image[..., k].astype(np.float32), label=label[..., k])
  return files


RUN = {"data": {"labelled": ["a", "b"], "fingerprint": "0"}, "channels": 1, "class_names": ["background", "atrium"], "num_classes": 2}


def model_files() -> Files:
  """An exported model that multiplies by two."""
  (batch,) = jax.export.symbolic_shape("batch")
  shapes = {"scale": jax.ShapeDtypeStruct((), np.float32)}, jax.ShapeDtypeStruct((batch, 8, 8, 8, 1), np.float32)
  program = jax.export.export(jax.jit(lambda weights, x: jax.nn.softmax(jnp.concatenate([x, x * weights["scale"]], -1))))(*shapes)
  files: Files = {WEIGHTS: safetensors.numpy.save({"scale": np.full((), 2, np.float32)}), PROGRAM: bytes(program.serialize())}
  facts = {
    "format": FORMAT,
    "class_names": ["background", "organ"],
    "channels": 1,
    "data": {"patch": [8, 8, 8]},
    "eval": {"stride": [4, 4, 4]},
  }
  facts["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
  return {**files, DESCRIPTION: json.dumps(facts).encode()}


def msd_config(root: Path, **changes: Any) -> DataConfig:
  return DataConfig(**{"source": "msd", "root": str(root), "num_labelled": 2, "num_holdout": 1, "patch": (8, 8, 8), **changes})


# --- changes


@st.composite
def changed_bytes(draw: Any, content: bytes) -> bytes:
  """Flipped bits, ranges cut out, put in, repeated or overwritten, or another file altogether."""
  how = draw(st.sampled_from(["flip", "flip", "flip", "truncate", "insert", "delete", "repeat", "fill", "other"]))
  place = st.integers(0, max(len(content) - 1, 0))
  if how == "flip":
    changed = bytearray(content)
    for position in draw(st.lists(place, min_size=1, max_size=6)):
      changed[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)
  if how == "truncate":
    return content[: draw(place)]
  if how == "other":
    return draw(st.one_of(st.just(b""), st.binary(max_size=400), st.just(b"\x1f\x8b" + content), st.just(packed(content)[:-4])))
  start, length = draw(place), draw(st.integers(1, 64))
  if how == "insert":
    return content[:start] + draw(st.binary(min_size=1, max_size=64)) + content[start:]
  if how == "delete":
    return content[:start] + content[start + length :]
  if how == "repeat":
    return content[: start + length] + content[start:]
  return content[:start] + bytes([draw(st.sampled_from([0, 1, 127, 255]))]) * length + content[start + length :]


@st.composite
def changed_header(draw: Any, raw: bytes) -> bytes:
  """A NIfTI-1 file with some header fields replaced."""
  changed = bytearray(raw)
  for _ in range(draw(st.integers(1, 3))):
    offset, form, count = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
    position = offset + struct.calcsize(form) * draw(st.integers(0, count - 1))
    if form == "f":
      value: Any = draw(st.one_of(st.sampled_from(FLOATS), st.floats(width=32)))
    else:
      bits = 8 * struct.calcsize(form) - 1
      value = draw(st.one_of(st.sampled_from(INTEGERS), st.integers(-(2**bits), 2**bits - 1)))
      value = max(min(value, 2**bits - 1), -(2**bits))
    struct.pack_into("<" + form, changed, position, value)
  return bytes(changed)


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "NaN": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 7, np.nan, a).astype(np.float32),
  "infinite": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 7, -np.inf, a).astype(np.float64),
  "beyond float32": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 7, 1e300, a).astype(np.float64),
  "constant": lambda a: np.zeros_like(a),
  "fractional": lambda a: a + np.float32(0.25),
  "negative": lambda a: -(a.astype(np.int16)) - 1,
  "large": lambda a: a.astype(np.int32) + 256,  # a valid label again when cut to eight bits
  "float": lambda a: a.astype(np.float64),
  "64 bits": lambda a: a.astype(np.int64) if a.dtype != np.uint8 else a.astype(np.uint64),
  "big-endian": lambda a: a.astype(">i2"),
  "complex": lambda a: a.astype(np.complex64) + 1j,
  "another shape": lambda a: a[1:],
  "turned": lambda a: np.ascontiguousarray(a.T),
  "plane": lambda a: a[..., 0],
  "one axis more": lambda a: a[..., None],
  "two channels": lambda a: np.stack([a, a], axis=-1),
  "five axes": lambda a: a[..., None, None],
  "line": lambda a: a[:, 0, 0],
  "one voxel": lambda a: a[:1, :1, :1],
  "thin": lambda a: a[:, :, :1],
}


@st.composite
def changed_nifti(draw: Any, content: bytes, compressed: bool) -> Any:
  """A NIfTI file changed in its bytes, its header, or its voxels."""
  raw = gzip.decompress(content) if compressed else content
  how = draw(st.sampled_from(["outer", "inner", "header", "header", "voxels", "array", "array", "affine", "huge", "rgb", "pair", "place"]))
  pack = packed if compressed else bytes
  if how == "outer":
    return draw(changed_bytes(content))
  if how == "inner":
    return pack(draw(changed_bytes(raw)))
  if how == "header":
    return pack(draw(changed_header(raw)))
  if how == "place":
    return draw(st.sampled_from([FOLDER, b"", None, lambda path: os.mkfifo(path), lambda path: path.symlink_to(path.with_name("gone"))]))
  array = np.asanyarray(nib.Nifti1Image.from_bytes(raw).dataobj) if raw[:4] != struct.pack("<i", 540) else scan(2)[0].astype(np.float32)
  if how == "voxels":
    changed = bytearray(raw)
    start = draw(st.integers(352, len(raw) - 8))
    changed[start : start + 8] = draw(
      st.sampled_from([struct.pack("<ff", x, x) for x in FLOATS] + [bytes([v]) * 8 for v in (1, 2, 3, 255)])
    )
    return pack(bytes(changed))
  if how == "array":
    array = ARRAYS[draw(st.sampled_from(sorted(ARRAYS)))](array)
    array = array.astype(np.int32) if array.dtype == np.bool_ else array
    return pack(_any_nifti(array))
  if how == "affine":
    changed = bytearray(nifti(array.astype(np.float32 if array.dtype.kind == "f" else np.int16)))
    struct.pack_into("<f", changed, 280 + 4 * draw(st.integers(0, 11)), draw(st.sampled_from(FLOATS)))
    return pack(bytes(changed))
  if how == "rgb":
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return pack(nifti(colours))
  changed = bytearray(raw)
  if how == "huge":
    side = draw(st.sampled_from([30000, 32767, 2000, 1100]))
    struct.pack_into("<8h", changed, 40, 3, side, side, side, 1, 1, 1, 1)
    if raw[:4] == struct.pack("<i", 540):
      struct.pack_into("<8q", changed, 16, 3, 2**40, 2**20, side, 1, 1, 1, 1)
    return pack(bytes(changed))
  start = 4 if raw[:4] == struct.pack("<i", 540) else 344
  changed[start : start + 4] = draw(st.sampled_from([b"ni1\0", b"ni2\0", b"n+1\0", b"n+2\0", bytes(4)]))
  return pack(bytes(changed))


def _any_nifti(array: np.ndarray) -> bytes:
  return nib.Nifti1Image(array, AFFINE, dtype=array.dtype).to_bytes()


def _h5_link(path: Path) -> None:
  with h5py.File(path.with_name("elsewhere.h5"), "w") as other:
    other["image"] = scan(9)[0].astype(np.float32)
  with h5py.File(path, "w") as file:
    file["image"] = h5py.ExternalLink("elsewhere.h5", "/image")


def _h5_raw(path: Path) -> None:
  path.with_name("raw").write_bytes(bytes(4 * math.prod(SHAPE)))
  with h5py.File(path, "w") as file:
    file.create_dataset("image", SHAPE, np.float32, external=[("raw", 0, h5py.h5f.UNLIMITED)])


def _h5_virtual(path: Path) -> None:
  _h5_link(path)
  layout = h5py.VirtualLayout(SHAPE, np.float32)
  layout[...] = h5py.VirtualSource(path.with_name("elsewhere.h5"), "image", SHAPE)
  with h5py.File(path, "w") as file:
    file.create_virtual_dataset("image", layout)


def _h5_sparse(side: int) -> Callable[[Path], None]:
  def write(path: Path) -> None:
    with h5py.File(path, "w") as file:
      file.create_dataset("image", (side,) * 3, np.float32, chunks=(64, 64, 64), compression="gzip")

  return write


def _h5_group(path: Path) -> None:
  with h5py.File(path, "w") as file:
    file.create_group("image")


def _h5_soft(path: Path) -> None:
  with h5py.File(path, "w") as file:
    file["image"] = h5py.SoftLink("/image")


@st.composite
def changed_h5(draw: Any, content: bytes) -> Any:
  """An h5 file of a case changed in its bytes, or written with other things in it."""
  how = draw(st.sampled_from(["bytes", "bytes", "image", "label", "affine", "strange", "place"]))
  if how == "bytes":
    return draw(changed_bytes(content))
  if how == "place":
    return draw(st.sampled_from([FOLDER, b"", None, lambda path: os.mkfifo(path)]))
  image, label = scan(0)[0].astype(np.float32), (scan(0)[1] > 0).astype(np.uint8)
  kinds: dict[str, Callable[[np.ndarray], Any]] = {
    **ARRAYS,
    "words": lambda a: np.full(a.shape, b"organ"),
    "truth": lambda a: a > 0,
    "number": lambda a: 1.0,
    "nothing": lambda a: h5py.Empty("f4"),
    "half": lambda a: a.astype(np.float16),
    "pairs": lambda a: np.zeros(a.shape, [("x", "f4"), ("y", "f4")]),
    "no voxels": lambda a: a[:0],
  }
  change = kinds[draw(st.sampled_from(sorted(kinds)))]
  if how == "image":
    return h5(change(image), label)
  if how == "label":
    return h5(image, change(label))
  if how == "affine":
    affine: Any = np.eye(4)
    affine[draw(st.integers(0, 3)), draw(st.integers(0, 3))] = draw(st.sampled_from(FLOATS))
    others = (affine, np.eye(3), np.zeros(16), "affine", 3.0, np.eye(4).astype(complex), np.full((4, 4), b"x"), np.eye(4) > 0)
    return h5(image, label, affine=others[draw(st.integers(0, len(others) - 1))])
  strange = [_h5_link, _h5_raw, _h5_virtual, _h5_sparse(30000), _h5_sparse(3000), _h5_group, _h5_soft, h5(None, label)]
  return strange[draw(st.integers(0, len(strange) - 1))]


@st.composite
def changed_nrrd(draw: Any, content: bytes) -> Any:
  """An NRRD file changed in its bytes or in a line of its header."""
  how = draw(st.sampled_from(["bytes", "line", "line", "line", "place"]))
  if how == "bytes":
    return draw(changed_bytes(content))
  if how == "place":
    return draw(st.sampled_from([FOLDER, b"", lambda path: os.mkfifo(path)]))
  head, voxels = content.split(b"\n\n", 1)
  lines = head.split(b"\n")
  values = [
    b"type: float",
    b"type: block",
    b"type: nonsense",
    b"dimension: 2",
    b"dimension: 4",
    b"sizes: 30000 30000 30000",
    b"sizes: 12 10",
  ]
  values += [
    b"sizes: -12 10 -8",
    b"sizes: 8 10 12",
    b"sizes: 1e9 1 1",
    b"encoding: raw",
    b"encoding: bzip2",
    b"encoding: ascii",
    b"encoding: hex",
  ]
  values += [
    b"encoding: gzip",
    b"endian: big",
    b"data file: /etc/passwd",
    b"datafile: ../b/lgemri.nrrd",
    b"data file: LIST",
    b"byte skip: -1",
  ]
  values += [b"byte skip: 5", b"line skip: 3", b"line skip: -1", b"space: scanner-xyz", b"space: left-anterior-superior", b"space: 3"]
  values += [
    b"space directions: none (1,0,0) (0,1,0)",
    b"space directions: (nan,0,0) (0,1,0) (0,0,1)",
    b"space directions: (0,0,0) (0,1,0) (0,0,1)",
  ]
  values += [
    b"space directions: (1,0) (0,1)",
    b"space origin: (inf,0,0)",
    b"space origin: (0,0)",
    b"space origin: x",
    b"space dimension: 2",
    b"junk",
  ]
  values += [
    b"a:=b",
    b"type: int",
    b"type: short",
    b"type: uchar",
    b"kinds: domain domain list",
    b"spacings: 1 nan 2",
    b"dimension: x",
    b"\xff: 1",
  ]
  for _ in range(draw(st.integers(1, 2))):
    value, position = values[draw(st.integers(0, len(values) - 1))], draw(st.integers(1, len(lines)))
    same = [i for i, line in enumerate(lines) if line.split(b":")[0] == value.split(b":")[0]]
    if same and draw(st.integers(0, 3)):
      lines[same[0]] = value
    else:
      lines.insert(position, value)
  return b"\n".join(lines) + b"\n\n" + voxels


@st.composite
def changed_npz(draw: Any, content: bytes) -> Any:
  """An npz file changed in its bytes, in those of an array in it, or written with other arrays."""
  how = draw(st.sampled_from(["bytes", "bytes", "inner", "image", "label", "object", "place", "npy"]))
  if how == "bytes":
    return draw(changed_bytes(content))
  if how == "place":
    return draw(st.sampled_from([FOLDER, b"", lambda path: os.mkfifo(path)]))
  image, label = (array[..., 0] for array in scan(1))
  image = image.astype(np.float32)
  if how in ("image", "label"):
    change = ARRAYS[draw(st.sampled_from(sorted(ARRAYS.keys() - {"line", "one voxel", "thin"})))]
    return npz(image=change(image), label=label) if how == "image" else npz(image=image, label=change(label))
  if how == "object":
    return npz(image=np.array([Hostile()] * 4).reshape(2, 2), label=label)
  stream = io.BytesIO()
  np.save(stream, image)
  if how == "npy":
    return stream.getvalue()
  raw = stream.getvalue()
  header = raw[10:128].replace(
    b"(12, 10)", draw(st.sampled_from([b"(99999, 99999)", b"(-1, 10)", b"(10, 12)", b"((((", b"(12,10.)", b"(9" * 30]))
  )
  inner = draw(st.sampled_from([raw[:10] + header[:118].ljust(118) + raw[128:], draw(changed_bytes(raw))]))
  packed_up = io.BytesIO()
  with zipfile.ZipFile(
    packed_up, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
  ) as file:
    file.writestr(draw(st.sampled_from(["image.npy", "image", "../image.npy"])), inner)
  return packed_up.getvalue()


class Hostile:
  """Unpickling this would leave a folder behind."""

  def __reduce__(self) -> Any:
    return os.mkdir, (str(Path(tempfile.gettempdir()) / "ssl_jax_was_unpickled"),)


JSON_VALUES = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**30, 2**63, 1.5, 1e308, math.nan, math.inf, 1.0]),
    st.sampled_from(
      ["", ".", "..", "/", "0", "1", "00", "²", "background", "imagesTr/a.nii.gz", "../a", "/etc/passwd", "a\0b", "x" * 5000]
    ),
    st.text(max_size=5),
  ),
  lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
  max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
  """Paths of every item of nested lists and dictionaries."""
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
  for key, item in items:
    yield (*path, key)
    yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
  """A copy in which `change(parent, key)` has been applied at a path; tuples become lists."""
  copy = json.loads(json.dumps(value))
  parent = copy
  for key in path[:-1]:
    parent = parent[key]
  change(parent, path[-1])
  return copy


def _swap(value: Any) -> Callable[[Any, Any], None]:
  def change(parent: Any, key: Any) -> None:
    parent[key] = value

  return change


def _remove(parent: Any, key: Any) -> None:
  del parent[key]


def _rename(name: str) -> Callable[[Any, Any], None]:
  def change(parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
      parent[name] = parent.pop(key)
    else:
      parent.insert(key, parent[key])

  return change


@st.composite
def changed_json(draw: Any, value: Any, values: Any = JSON_VALUES) -> bytes:
  """JSON with an item replaced, removed or renamed, or text that is hardly JSON."""
  how = draw(st.sampled_from(["item", "item", "item", "bytes", "text"]))
  text = json.dumps(value)
  if how == "bytes":
    return draw(changed_bytes(text.encode()))
  if how == "text":
    whole = [
      "[" * 100_000,
      '{"a":' * 3000 + "1" + "}" * 3000,
      text[:-1] + ', "labels": ' + '{"x":' * 400 + "1" + "}" * 401,
      "9" * 5000,
      text[:-1] + ', "number": ' + "9" * 5000 + "}",
      text[:-1] + "," + text[1:],  # every key twice
      text + text,
      "null",
      '"text"',
      "[]",
      "{}",
      "\ufeff" + text,
    ]
    found = whole[draw(st.integers(0, len(whole) - 1))]
    return found.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-32"])))
  for _ in range(draw(st.integers(1, 2))):
    known = sorted(places(value), key=repr)
    if not known:
      break
    path = known[draw(st.integers(0, len(known) - 1))]
    name = draw(st.sampled_from(["", "0", "1", "2", "7", "modality", "labels", "training", "image", "label", "ignore", "background"]))
    change = draw(st.sampled_from([_remove, _rename(name), None, None]))
    value = replaced(value, path, change or _swap(draw(values)))
  return json.dumps(value).encode()


LINES = [
  "a",
  "b",
  "c",
  "d",
  "A",
  "a.nii.gz",
  " a ",
  "",
  "  ",
  "\t",
  ".",
  "./a",
  "..",
  "../a",
  "/etc/passwd",
  "x/../../a",
  "..\\a",
  "C:\\a",
  "~",
]
LINES += ["a\0", "\0", "x" * 5000, "a b", "a/", "é", "\ufeffa", "a\x0bb", "a\u2028b", "imagesTr/a", "-", "*", "?", "[a]", "{}", "%s"]


@st.composite
def changed_list(draw: Any) -> Any:
  """A list of cases, more or less."""
  how = draw(st.sampled_from([*["lines"] * 8, "bytes", "bytes", "large", "place"]))
  if how == "place":
    return draw(st.sampled_from([FOLDER, b"", Path("/etc/passwd"), Path("/nowhere"), lambda path: os.mkfifo(path)]))
  if how == "large":
    number = draw(st.sampled_from([1000, 200_000]))
    return "\n".join(f"case{i % 150_000}" for i in range(number)).encode()
  if how == "bytes":
    return draw(changed_bytes(b"c\na\nb\n"))
  lines = list(draw(st.permutations(["a", " b", "c\t", "d", ""])))[draw(st.integers(0, 3)) :]
  for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
    lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(LINES)))
  text = draw(st.sampled_from(["\n", "\r\n", "\n\n", "\r"])).join(lines) + draw(st.sampled_from(["", "\n"]))
  return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), errors="replace")
