"""What the stages share: run directory, checkpoints, stopping, guards, statistics, logging, TRL arguments."""
