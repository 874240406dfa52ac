"""Launchers: what a cluster would refuse, how arguments, signals and exit statuses pass, without any cluster."""

import copy
import functools
import importlib
import json
import math
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import referencing
import yaml
from referencing.jsonschema import DRAFT7

from launch import local_multiprocess

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
JOBSETS = sorted(LAUNCH.glob("jobset_*.yaml"))
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
NAME = lambda path: path.name
AWKWARD = ["--config=configs/a b.py", "--config.train.phases=(('train', 6),)", "--x=$HOME '\"; `exit 9` \\ *"]

# --- Kubernetes ---

SCHEMAS = {name: json.loads((ROOT / f"tests/data/{name}_schema.json").read_text()) for name in ("jobset", "kubernetes")}
REGISTRY = referencing.Registry().with_resources([(f"{name}_schema.json", DRAFT7.create_resource(s)) for name, s in SCHEMAS.items()])
SCHEMA_OF = {
  "JobSet": {"$ref": "jobset_schema.json"},
  "PersistentVolumeClaim": {"$ref": "kubernetes_schema.json#/$defs/io.k8s.api.core.v1.PersistentVolumeClaim"},
}
JOB_FAILURE_REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}


def check(document):
  jsonschema.Draft7Validator(SCHEMA_OF[document["kind"]], registry=REGISTRY).validate(document)


def job_of(file: Path) -> tuple[dict, dict, dict, dict]:
  """A JobSet, the spec of its only job, that of its pods, and their only container."""
  document = yaml.safe_load(file.read_text())
  (replicated,) = document["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  return document, job, pod, container


@pytest.mark.parametrize("file", MANIFESTS, ids=NAME)
def test_manifests_fit_the_published_schemas(file):
  documents = list(yaml.safe_load_all(file.read_text()))
  assert documents
  for document in documents:
    check(document)


@pytest.mark.parametrize(
  "path",
  [
    ("spec", "failurePolicy", "maxRestarts"),
    ("spec", "network", "enableDNSHostnames"),
    ("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy"),
    ("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 1, "onExitCodes", "values"),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "terminationGracePeriodSeconds"),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "env", 0, "name"),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "volumes", 0, "persistentVolumeClaim"),
  ],
  ids=lambda path: path[-1],
)
@pytest.mark.parametrize("file", JOBSETS, ids=NAME)
def test_misspelt_fields_are_refused(file, path):
  document = yaml.safe_load(file.read_text())
  check(document)
  *parents, key = path
  group = document
  for part in parents:
    group = group[part]
  group[key + "s"] = group.pop(key)
  with pytest.raises(jsonschema.ValidationError, match=f"{key}s' was unexpected|'{key}' is a required property"):
    check(document)


def test_values_of_a_wrong_kind_are_refused():
  document = yaml.safe_load(JOBSETS[0].read_text())
  wrong = copy.deepcopy(document)
  wrong["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"
  with pytest.raises(jsonschema.ValidationError, match="is not one of"):
    check(wrong)
  document["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] = "0"
  with pytest.raises(jsonschema.ValidationError, match="is not of type"):
    check(document)


@pytest.mark.parametrize("file", JOBSETS, ids=NAME)
def test_exit_statuses_decide_who_restarts(file):
  document, job, pod, container = job_of(file)
  rules = [
    (rule["action"], rule.get("onExitCodes", {}).get("values"), rule.get("onPodConditions")) for rule in job["podFailurePolicy"]["rules"]
  ]
  disrupted = [{"type": "DisruptionTarget", "status": "True"}]
  assert rules == [("FailJob", [2], None), ("Ignore", [75], None), ("Ignore", None, disrupted)]
  assert {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule} == {container["name"]}
  assert pod["restartPolicy"] == "Never" and job["podReplacementPolicy"] == "Failed"  # podFailurePolicy allows no others
  assert job["backoffLimit"] == 0 and document["spec"]["failurePolicy"]["maxRestarts"] > 0
  (rule,) = document["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert set(rule["onJobFailureReasons"]) <= JOB_FAILURE_REASONS
  assert pod["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize("file", JOBSETS, ids=NAME)
def test_processes_find_each_other(file):
  document, job, pod, container = job_of(file)
  assert job["completionMode"] == "Indexed" and document["spec"]["network"]["enableDNSHostnames"]
  assert job["completions"] == job["parallelism"]
  env = {variable["name"]: variable for variable in container["env"]}
  order = list(env)
  if "gke-tpu-topology" in str(pod["nodeSelector"]):
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert not any(name.startswith("JAX_COORDINATOR") for name in env)  # JAX asks GKE's variables
    return
  assert int(env["JAX_NUM_PROCESSES"]["value"]) == job["completions"]
  assert document["spec"]["coordinator"]["replicatedJob"] == document["spec"]["replicatedJobs"][0]["name"]
  assert env["COORDINATOR"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
  assert order.index("COORDINATOR") < order.index("JAX_COORDINATOR_ADDRESS"), "a variable may name only earlier ones"
  port = re.fullmatch(r"\$\(COORDINATOR\):(\d+)", env["JAX_COORDINATOR_ADDRESS"]["value"])[1]
  assert {"containerPort": int(port)} in container["ports"]
  assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


@pytest.mark.parametrize("file", JOBSETS, ids=NAME)
def test_volumes_are_there_and_hold_what_must_stay(file):
  _, _, pod, container = job_of(file)
  claims = {document["metadata"]["name"] for document in yaml.safe_load_all((LAUNCH / "volumes.yaml").read_text())}
  volumes = {volume["name"]: volume for volume in pod["volumes"]}
  mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
  assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume} == claims
  options = dict(argument.partition("=")[::2] for argument in container["args"])
  cache = next(variable["value"] for variable in container["env"] if variable["name"] == "JAX_COMPILATION_CACHE_DIR")
  for place in (options["--workdir"], options["--config.data.root"], cache):
    assert "persistentVolumeClaim" in mounts["/" + place.split("/")[1]], place


@pytest.mark.parametrize("file", JOBSETS, ids=NAME)
def test_arguments_are_understood_and_use_every_device(file):
  _, job, _, container = job_of(file)
  assert container["args"][0] == "--distributed"
  options = dict(argument.partition("=")[::2] for argument in container["args"])
  cfg = importlib.import_module(options["--config"].removesuffix(".py").replace("/", ".")).get_config()
  for key in (name.removeprefix("--config.") for name in options if name.startswith("--config.")):
    functools.reduce(operator.getitem, key.split("."), cfg)
  devices = job["completions"] * next(n for name, n in container["resources"]["limits"].items() if name.endswith(("gpu", "tpu")))
  for stream in ("labelled", "unlabelled"):
    assert int(options[f"--config.train.batch_{stream}"]) % devices == 0


# --- the container ---


def instructions() -> list[tuple[str, list[str]]]:
  text = re.sub(r"\\\n", " ", (LAUNCH / "Containerfile").read_text())
  return [(line.split()[0], shlex.split(line)[1:]) for line in text.splitlines() if line and not line.startswith("#")]


def test_container_copies_what_exists():
  for _, words in (i for i in instructions() if i[0] == "COPY"):
    for source in words[:-1]:
      assert (ROOT / source).exists(), source
  assert ["ssl_jax", "ssl_jax"] in [words for name, words in instructions() if name == "COPY"]


def test_container_pins_its_base_and_is_not_root():
  found = instructions()
  (base,) = (words[0] for name, words in found if name == "FROM")
  tag = base.rpartition("/")[2].partition(":")[2]
  assert re.match(r"\d+\.\d+", tag), base
  (user,) = (words[0] for name, words in found if name == "USER")
  assert int(user) > 0, "a number, so that runAsNonRoot can be checked"
  installs = next(" ".join(words) for name, words in found if name == "RUN" and "pip" in words)
  assert "requirements.txt" in installs and "jax[${JAX}]" in installs


# --- shell scripts ---


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A folder first on PATH with programs that stand for SLURM's; `python` records its arguments in a file, NUL-separated."""
  programs = {
    "srun": 'while [[ $1 == --* ]]; do echo "$1" >>"$HERE/srun.log"; shift; done\nexec "$@"',
    "scontrol": 'echo "$*" >>"$HERE/scontrol.log"; exit "${SCONTROL_STATUS:-0}"',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "python": """
      printf '%s\\0' "$@" >"$HERE/arguments"
      env >"$HERE/env"
      if [[ -n ${WAIT:-} ]]; then
        trap 'sleep 0.2; echo saved >"$HERE/saved"; exit 75' TERM
        touch "$HERE/ready"
        for _ in {1..200}; do sleep 0.05; done
      fi
      exit "${STATUS:-0}" """,
  }
  for name, text in programs.items():
    (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / name).chmod(0o755)
  for name in list(os.environ):
    if name.startswith(("SLURM_", "JAX_")):
      monkeypatch.delenv(name)
  for name, value in {
    "HERE": tmp_path,
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "PYTHON": tmp_path / "python",
    "SLURM_SUBMIT_DIR": ROOT,
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_ON_NODE": "64",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_ARRAY_TASK_ID": "7",
  }.items():
    monkeypatch.setenv(name, str(value))
  return tmp_path


def sbatch(script: str, *arguments: str, folder: Path) -> subprocess.Popen:
  """Runs a batch script as SLURM does: a copy, from elsewhere."""
  spooled = folder / "slurm_script"
  shutil.copy(LAUNCH / script, spooled)
  return subprocess.Popen(["bash", spooled, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True)


def read(file: Path) -> str:
  return file.read_text() if file.exists() else ""


def wait_for(file: Path) -> None:
  deadline = time.monotonic() + 8
  while not file.exists():
    assert time.monotonic() < deadline, f"{file.name} was not written"
    time.sleep(0.01)


@pytest.mark.parametrize("file", SHELL, ids=NAME)
def test_shell_scripts_have_no_findings(file):
  program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  done = subprocess.run([program, "--external-sources", "--shell=bash", file], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  ("script", "before", "after"),
  [
    ("slurm.sbatch", ["-m", "ssl_jax.main", "--distributed"], []),
    ("slurm_sweep.sbatch", ["-m", "ssl_jax.sweep"], ["--index=7"]),
  ],
)
def test_arguments_reach_python_unharmed(script, before, after, cluster):
  assert sbatch(script, *AWKWARD, folder=cluster).wait() == 0
  assert read(cluster / "arguments").split("\0")[:-1] == [*before, *AWKWARD, *after]
  assert not read(cluster / "scontrol.log")


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_sweep.sbatch"])
@pytest.mark.parametrize(
  ("status", "state", "requeued"),
  [
    (0, "RUNNING", ""),
    (1, "RUNNING", ""),
    (2, "RUNNING", ""),
    (143, "RUNNING", ""),
    (75, "RUNNING", "requeue 42\n"),
    (75, "COMPLETING", ""),
  ],
)
def test_only_preempted_jobs_are_requeued(script, status, state, requeued, cluster, monkeypatch):
  monkeypatch.setenv("STATUS", str(status))
  monkeypatch.setenv("STATE", state)
  process = sbatch(script, "--config=a.py", folder=cluster)
  assert process.wait() == status
  assert read(cluster / "scontrol.log") == requeued


@pytest.mark.parametrize(("state", "said"), [("RUNNING", True), ("PENDING", False)])
def test_a_requeue_that_fails_is_reported_unless_the_job_is_in_the_queue(state, said, cluster, monkeypatch):
  for name, value in {"STATUS": "75", "STATE": state, "SCONTROL_STATUS": "1"}.items():
    monkeypatch.setenv(name, value)
  process = sbatch("slurm.sbatch", "--config=a.py", folder=cluster)
  assert ("was not requeued" in process.communicate()[1]) == said and process.returncode == 75


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_sweep.sbatch"])
def test_sigterm_passes_through_and_the_checkpoint_is_awaited(script, cluster, monkeypatch):
  monkeypatch.setenv("WAIT", "1")
  process = sbatch(script, "--config=a.py", folder=cluster)
  wait_for(cluster / "ready")
  process.send_signal(signal.SIGTERM)
  time.sleep(0.1)
  process.send_signal(signal.SIGTERM)  # SLURM may send it to the script more than once
  assert process.wait() == 75
  assert read(cluster / "saved") and read(cluster / "scontrol.log") == "requeue 42\n"


@pytest.mark.parametrize(
  ("per", "tasks", "tasks_per_node", "cpus", "ids"),
  [("gpu", 12, 4, 16, None), ("node", 3, 1, 64, "0,1,2,3"), ("nose", None, None, None, None)],
)
def test_one_process_a_gpu_or_a_node(per, tasks, tasks_per_node, cpus, ids, cluster, monkeypatch):
  monkeypatch.setenv("PROCESSES_PER", per)
  process = sbatch("slurm.sbatch", "--config=a.py", folder=cluster)
  if tasks is None:
    assert "PROCESSES_PER=nose" in process.communicate()[1] and process.returncode == 2
    return
  assert process.wait() == 0
  options = read(cluster / "srun.log").split()
  assert {f"--ntasks={tasks}", f"--ntasks-per-node={tasks_per_node}", f"--cpus-per-task={cpus}", "--nodes=3"} <= set(options)
  assert re.findall(r"(?m)^JAX_LOCAL_DEVICE_IDS=(.*)$", read(cluster / "env")) == ([ids] if ids else [])


def test_without_gpus_or_an_array_nothing_starts(cluster, monkeypatch):
  monkeypatch.delenv("SLURM_GPUS_ON_NODE")
  assert sbatch("slurm.sbatch", "--config=a.py", folder=cluster).wait() == 2
  monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
  assert sbatch("slurm_sweep.sbatch", "--sweep=a.py", folder=cluster).wait() == 2
  assert not read(cluster / "arguments")


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_sweep.sbatch"])
def test_slurm_is_asked_to_warn_the_processes(script):
  directives = re.findall(r"(?m)^#SBATCH (\S+)", (LAUNCH / script).read_text())
  assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(directives)  # TERM, not B:TERM, which only the shell gets


def test_tpu_pod_starts_python_on_the_hosts(cluster, monkeypatch):
  home = cluster / "host"
  (home / "ssl_jax/.venv/bin").mkdir(parents=True)
  shutil.copy(cluster / "python", home / "ssl_jax/.venv/bin/python")
  (cluster / "gcloud").write_text(
    '#!/bin/bash\necho "${*:1:7}" >>"$HERE/log"\nfor a; do [[ $a == --command=* ]] && command=${a#--command=}; done\n'
    'cd "$HERE/host" && eval "$command"\n'
  )
  (cluster / "gcloud").chmod(0o755)
  for name, value in {"TPU": "slice", "ZONE": "zone-a", "STATUS": "75"}.items():
    monkeypatch.setenv(name, value)
  subprocess.run([LAUNCH / "tpu_pod.sh", "run", *AWKWARD], check=True, timeout=8)
  wait_for(home / "ssl_jax/status")
  assert read(cluster / "arguments").split("\0")[:-1] == ["-m", "ssl_jax.main", "--distributed", *AWKWARD]
  assert read(cluster / "log").strip() == "compute tpus tpu-vm ssh slice --zone=zone-a --worker=all"
  assert "exit status 75" in subprocess.run([LAUNCH / "tpu_pod.sh", "log"], check=True, capture_output=True, text=True, timeout=8).stdout

  monkeypatch.setenv("WAIT", "1")
  subprocess.run([LAUNCH / "tpu_pod.sh", "run", "--config=a.py"], check=True, timeout=8)
  wait_for(cluster / "ready")
  subprocess.run([LAUNCH / "tpu_pod.sh", "stop"], check=True, timeout=8)
  wait_for(cluster / "saved")
  assert subprocess.run([LAUNCH / "tpu_pod.sh"], capture_output=True, check=False).returncode == 2


# --- several processes on this machine ---

CHILD = """
import os, signal, sys, time
number = int(os.environ["JAX_PROCESS_ID"])
def stop(*_):
  print("stopped", flush=True)
  time.sleep(0.1 * number)
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
"""


def launch(program: str, *arguments: str, processes: int = 2, **options) -> int:
  return local_multiprocess.launch(arguments, processes, 2, command=[sys.executable, "-S", "-c", CHILD + program], **options)


def test_every_process_learns_of_the_others(capfd):
  names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID", "NUM_CPU_DEVICES", "PLATFORMS")
  program = f"print(*(os.environ['JAX_' + n] for n in {names}), os.environ['OWN'], sys.argv[1:], 'TQDM_DISABLE' in os.environ, sep='|')"
  assert launch(program, *AWKWARD, processes=3, env={"OWN": "x"}) == 0
  lines = sorted(capfd.readouterr().out.splitlines())
  assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
  fields = [line[4:].split("|") for line in lines]
  assert len({address for address, *_ in fields}) == 1 and re.fullmatch(r"127\.0\.0\.1:\d+", fields[0][0])
  assert [rest for _, *rest in fields] == [["3", str(i), "2", "cpu", "x", str(AWKWARD), str(i > 0)] for i in range(3)]


def test_every_line_has_its_process_number(capfd):
  assert launch("sys.stderr.write('one\\ntwo\\n\\n'); sys.stderr.write('\\r10%\\r20%\\nlast' * (number == 0))") == 0
  lines = capfd.readouterr().out.splitlines()
  assert [line for line in lines if line[:4] == "[0] "] == ["[0] one", "[0] two", "[0] 10%", "[0] 20%", "[0] last"]
  assert [line for line in lines if line[:4] != "[0] "] == ["[1] one", "[1] two"]


@pytest.mark.parametrize(
  ("program", "status"),
  [
    ("sys.exit(0)", 0),
    ("sys.exit(2)", 2),
    ("sys.exit(75 * number)", 75),
    ("os.kill(os.getpid(), signal.SIGKILL * number)", 128 + signal.SIGKILL),
  ],
)
def test_the_first_failure_is_the_exit_status(program, status):
  assert launch(program) == status


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_failures_the_first_counts(first, tmp_path):
  """The other fails once the first has been noticed, when its entry in /proc is gone."""
  program = f"""
file = {str(tmp_path / "pid")!r}
if number == {first}:
  os.symlink(str(os.getpid()), file)
else:
  while not os.path.lexists(file): time.sleep(0.01)
  while os.path.exists("/proc/" + os.readlink(file)): time.sleep(0.01)
sys.exit(3 + number)"""
  assert launch(program) == 3 + first


def test_the_rest_is_killed_after_the_grace_period(tmp_path):
  begin = time.monotonic()
  program = f"""
if number: sys.exit(3)
import subprocess
grandchild = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pid")!r}, "w").write(str(grandchild.pid))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)"""
  assert launch(program, grace=0.5) == 3
  assert 0.5 <= time.monotonic() - begin < 5
  pid = read(tmp_path / "pid")
  assert not pid or read(Path(f"/proc/{pid}/stat")).split()[2:3] in ([], ["Z"]), "what a process has started ends with it"


def test_the_rest_may_end_by_itself_within_the_grace_period(capfd):
  assert launch("time.sleep(0.4 * (1 - number)); print('saved'); sys.exit(75)", grace=8) == 75
  assert "[0] saved" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_every_process(number, tmp_path):
  program = CHILD + "signal.signal(signal.SIGINT, stop); print('ready', flush=True)\nwhile True: time.sleep(0.05)"
  call = "import sys; from launch import local_multiprocess as m; sys.exit(m.launch([], 2, 1, command=sys.argv[1:]))"
  command = [sys.executable, "-S", "-c", program]
  process = subprocess.Popen([sys.executable, "-S", "-c", call, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
  process.send_signal(number)
  out, _ = process.communicate(timeout=8)
  assert process.returncode == 75
  assert sorted(out.splitlines()) == ["[0] stopped", "[1] stopped"]


def test_handlers_are_restored():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  launch("")
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_command_line_of_several_processes(monkeypatch):
  calls = []
  monkeypatch.setattr(local_multiprocess, "launch", lambda **options: calls.append(options) or 75)
  assert local_multiprocess.main(["--processes=3", "--devices=4", "--", *AWKWARD]) == 75
  assert calls == [{"processes": 3, "devices": 4, "grace": local_multiprocess.GRACE_S, "arguments": AWKWARD}]


# --- the page ---


def test_every_launcher_is_described():
  text = (LAUNCH / "README.md").read_text()
  for file in LAUNCH.iterdir():
    assert file.name in text or file.name in ("README.md", "__pycache__"), file.name
