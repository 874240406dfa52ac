"""Disturbs runs in every way we know and compares how they end with one left in peace.

  python -m tests.reliability [FOLDER] [KILLS] [killed] [damaged] [disk_full] [one_of_two]

Prints a table; takes about half an hour. Not part of the suite. FOLDER should be on a disk; a small tmpfs is mounted
below it for the full disk, which needs root.
"""

import contextlib
import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import Forked, forked, tiny_config, with_train, write_config
from tests.methods.common import SMALL_OPTIONS

STEPS, EVERY = 900, 20


def lines(workdir):
  file = workdir / "metrics.jsonl"
  return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []  # the last may be half written


def job(folder, workdir, **extra):
  cfg = with_train(
    tiny_config("crln"),
    phases=(("train", STEPS),),
    batch_labelled=2,
    batch_unlabelled=2,
    log_every_steps=1,
    checkpoint_every_steps=EVERY,
    keep_checkpoints=3,
  )
  flag = write_config(dataclasses.replace(cfg, method={**cfg.method, **SMALL_OPTIONS["crln"]}), folder / "config.py")
  return {"argv": [flag, f"--workdir={workdir}"], "stand_ins": True, **extra}


def pair(folder, workdir, port):
  joined = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
  one = job(folder, workdir)
  return [{**one, "argv": [*one["argv"], "--distributed"], "env": {**joined, "JAX_PROCESS_ID": str(k)}} for k in range(2)]


def ending(workdir):
  """The checksums of every array of the last state, and all losses by step."""
  found = {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}
  return ((workdir / "checkpoints" / str(STEPS) / "checksums/metadata").read_text(), [found.get(k) for k in range(1, STEPS + 1)])


def last_checkpoint(workdir):
  return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def kill_often(folder, number, kills):
  """One run, killed `kills` times at random moments, every fourth time while a checkpoint is being written; returns the steps lost."""
  workdir, lost = folder / f"killed_{number}", []
  for k in range(kills):
    running, start = Forked([job(folder, workdir)]), len(lines(workdir))
    running.wait_for_lines(workdir, start + 1)
    if k % 4 == 3:
      deadline = time.time() + 20
      while not list((workdir / "checkpoints").glob("*tmp*")) and time.time() < deadline:
        pass
    else:
      running.wait_for_lines(workdir, start + random.randrange(1, 3 * EVERY))
      time.sleep(random.random() / 20)
    running.kill_last(number)
    ((status, _),) = running.finish()
    if status == 0:
      return lost
    lost.append(max(line["step"] for line in lines(workdir)) - last_checkpoint(workdir))
  return lost


def damage(workdir, how):
  """Spoils the largest file of the last checkpoint."""
  file = max((workdir / "checkpoints" / str(last_checkpoint(workdir)) / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
  content = bytearray(file.read_bytes())
  if how == "truncated":
    content = content[: len(content) // 2]
  else:
    content[len(content) // 2] ^= 1 << random.randrange(8)
  file.write_bytes(content)


def peace(folder, jobs, name="peace"):
  """How a run ends that nobody disturbs; made once."""
  if not (folder / name / "checkpoints" / str(STEPS)).exists():
    found = forked(jobs(folder / name))
    assert {status for status, _ in found} == {0}, found
  return ending(folder / name)


def alone(folder):
  return lambda workdir, **extra: [job(folder, workdir, **extra)]


def report(name, times, lost, found, expected):
  same = "yes, bit for bit" if found == expected else "NO"
  print(f"| {name} | {times} | {lost} | {same} |", flush=True)


def resume(folder, workdir):
  ((status, error),) = forked([job(folder, workdir)])
  assert status == 0, error
  return error


def killed(folder, kills):
  for number in (signal.SIGKILL, signal.SIGTERM):
    lost, workdir = kill_often(folder, number, kills), folder / f"killed_{number}"
    resume(folder, workdir)
    report(number.name, len(lost), f"at most {max(lost)}", ending(workdir), peace(folder, alone(folder)))


def damaged(folder, _):
  for how in ("truncated", "bit flipped"):
    workdir = folder / how.split()[0]
    ((status, _),) = forked([job(folder, workdir, stop_after=110)])
    assert status == 75
    damage(workdir, how)
    assert "damaged" in resume(folder, workdir)
    report(f"last checkpoint {how}", 1, 110 - 100, ending(workdir), peace(folder, alone(folder)))


def disk_full(folder, _):
  disk = folder / "disk"
  disk.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
  try:
    workdir, filler = disk / "run", disk / "filler"
    lost = []
    for moment in (50, 120, 210):
      running = Forked([job(folder, workdir)])
      running.wait_for_lines(workdir, moment)
      with contextlib.suppress(OSError):
        filler.write_bytes(b"0" * 2**26)
      ((status, error),) = running.finish()
      assert status == 74, (status, error)
      lost.append(max(line["step"] for line in lines(workdir)) - last_checkpoint(workdir))
      filler.unlink()
    resume(folder, workdir)
    report("disk full", len(lost), f"at most {max(lost)}", ending(workdir), peace(folder, alone(folder)))
  finally:
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def one_of_two(folder, kills):
  expected = peace(folder, lambda workdir: pair(folder, workdir, 4801), "two_in_peace")
  workdir, lost = folder / "two", []
  for k in range(kills // 4):
    running = Forked(pair(folder, workdir, 4802 + k))
    running.wait_for_lines(workdir, len(lines(workdir)) + random.randrange(2, 60))
    running.kill_last(signal.SIGKILL)
    (first, error), (second, _) = running.finish()
    assert second == -signal.SIGKILL and first not in (0, 2, 75), error
    lost.append(max(line["step"] for line in lines(workdir)) - last_checkpoint(workdir))
  found = forked(pair(folder, workdir, 4850))
  assert [status for status, _ in found] == [0, 0], found
  report("one of two processes killed", len(lost), f"at most {max(lost)}", ending(workdir), expected)


def main(folder="/tmp/ssl_jax_reliability", kills="20", *only):
  Path(folder).mkdir(parents=True)
  random.seed(0)
  print("| disturbance | times | steps done again | ends as undisturbed |\n| --- | ---: | ---: | --- |", flush=True)
  for disturb in (killed, damaged, disk_full, one_of_two):
    if not only or disturb.__name__ in only:
      disturb(Path(folder), int(kills))


if __name__ == "__main__":
  main(*sys.argv[1:])
