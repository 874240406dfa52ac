"""What is written during training: nothing waits or is lost in silence when it cannot be written."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from ssl_jax.core.writer import Writer
from tests.helpers import HANG_S, ROOT


@pytest.fixture
def writer(tmp_path):
  return Writer(tmp_path, 3, 10, "test")


def test_a_full_disk_is_an_error_at_once(writer):
  """Twenty events, which is more than the queue of a SummaryWriter holds."""
  full = open("/dev/full", "wb")  # noqa: SIM115  closed with the writer
  writer._events._py_recordio_writer._writer = full
  with pytest.raises(OSError, match="No space left") as raised:
    writer.write(4, {f"metric{k}": 1.0 for k in range(20)})
  assert raised.value.errno == errno.ENOSPC


def test_lines_on_a_full_disk_are_an_error(writer):
  writer._lines = open("/dev/full", "w")  # noqa: SIM115
  with pytest.raises(OSError, match="No space left"):
    writer.write(4, {"loss": 1.0})


def test_what_was_written_is_there_before_it_is_closed(writer, tmp_path):
  writer.write(4, {"phase": "train", "loss": 0.5})
  writer.image(4, "scan", np.zeros((4, 6, 3), np.uint8))
  writer.close()
  assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 4, "phase": "train", "loss": 0.5}
  (file,) = (tmp_path / "tensorboard").iterdir()
  content, events = file.read_bytes(), []
  while content:
    length = int.from_bytes(content[:8], "little")
    events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  assert events[1].step == 3 and events[1].session_log.status == event_pb2.SessionLog.START
  assert [(e.step, e.summary.value[0].tag) for e in events[2:]] == [(4, "loss"), (4, "scan")]


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text('{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
  writer = Writer(tmp_path, 2, 10, "test")
  writer.write(3, {"loss": 0.5})
  writer.close()
  assert [json.loads(line) for line in file.read_text().splitlines()] == [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}]


def test_pytorch_is_not_imported_where_it_is_installed(tmp_path):
  (tmp_path / "torch.py").write_text("print('imported')")
  program = "import ssl_jax.core.writer; print('then'); import torch"  # whoever wants it still gets it
  env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=HANG_S, check=True)
  assert done.stdout.split() == ["then", "imported"]
