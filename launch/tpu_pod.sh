#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice:
#   export TPU=my-slice ZONE=us-central2-b
#   launch/tpu_pod.sh install                                      # copies the last commit to every host, makes its environment
#   launch/tpu_pod.sh run --config=configs/crln_la.py --config.data.root=/mnt/shared/data/la --workdir=/mnt/shared/runs/crln_la
#   launch/tpu_pod.sh log                                          # of host 0; again after it: the exit status
#   launch/tpu_pod.sh stop                                         # SIGTERM: a checkpoint, then exit status 75
# data.root and workdir are on a file system that every host has mounted at the same place. PYTHON: 3.11 or newer, on the hosts.
set -euo pipefail

: "${TPU:?name of the slice}" "${ZONE:?its zone}"
PYTHON=${PYTHON:-python3.12}

on() { # on HOST COMMAND: runs a command on a host, or on "all"
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  # shellcheck disable=SC2064 # the name is known now
  trap "rm -f '$archive'" EXIT
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$TPU:ssl_jax.tar.gz" --zone="$ZONE" --worker=all
  on all "set -e
    command -v $PYTHON >/dev/null || {
      sudo add-apt-repository --yes ppa:deadsnakes/ppa
      sudo apt-get install --yes $PYTHON $PYTHON-venv
    }
    mkdir -p ssl_jax
    tar --extract --gzip --file=ssl_jax.tar.gz --directory=ssl_jax
    cd ssl_jax
    $PYTHON -m venv .venv
    .venv/bin/pip install --quiet --requirement=requirements.txt 'jax[tpu]'"
}

run() {
  local arguments
  arguments=$(printf ' %q' "$@")
  # outlives the connection; the process itself, and not a shell, gets the signal
  on all "cd ssl_jax && rm -f status && { nohup bash -c '.venv/bin/python -m ssl_jax.main --distributed \"\$@\" & echo \$! >pid; wait \$!; echo \$? >status' run$arguments >log 2>&1 </dev/null & }"
}

case ${1:-} in
  install) install ;;
  run) shift && run "$@" ;;
  log) on 0 "cd ssl_jax && tail -n 50 log && { [[ ! -f status ]] || echo exit status \$(<status); }" ;;
  stop) on all "kill -TERM \$(<ssl_jax/pid)" ;;
  *) sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2 && exit 2 ;;
esac
