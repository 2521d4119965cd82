"""The tasks that checkpoints are scored on, a small file each; `catalogue` lists them. None of them imports
torch."""
