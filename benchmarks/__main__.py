"""`python -m benchmarks [options of step_time.py]`: the step time of the published shape beside PyTorch's."""

from benchmarks import step_time

if __name__ == "__main__":
  step_time.main()
