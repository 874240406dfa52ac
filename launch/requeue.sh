# Sourced by the batch scripts.

job_state() {
  squeue --noheader --format=%T --job="$SLURM_JOB_ID" 2>/dev/null
}

# Runs a command, hands SIGTERM on to it, and puts the job back into the queue when it exits with 75; returns its exit status.
run_and_requeue() {
  local step status signalled=1
  "$@" &
  step=$!
  # once: bash forgets the status of a command that ends just when another signal ends wait
  trap 'trap "" TERM; signalled=1; kill -TERM "$step" 2>/dev/null' TERM
  while ((signalled)); do # a signal ends wait before the command has ended
    signalled=0
    wait "$step"
    status=$?
  done
  # scancel sends SIGTERM too, and a job that it ends is COMPLETING: leave that one alone
  if ((status == 75)) && [[ $(job_state) != COMPLETING ]]; then
    echo "$(date --iso-8601=seconds) preempted: job $SLURM_JOB_ID goes back into the queue" >&2
    # may complain although the job is in the queue again already
    scontrol requeue "$SLURM_JOB_ID" || [[ $(job_state) != RUNNING ]] || echo "error: job $SLURM_JOB_ID was not requeued; submit it again" >&2
  fi
  return "$status"
}
