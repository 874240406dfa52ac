"""What every training step is made of: keys, schedules, optimizer, EMA, terms, sharding, checkpoints, logs."""
