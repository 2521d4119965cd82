"""Runs rewards: one call (`call`), processes that can be killed (`worker`, `pool`), batches (`batch`)."""
