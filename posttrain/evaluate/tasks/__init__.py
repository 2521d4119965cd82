"""Tasks that checkpoints are scored on. None of these files imports torch."""
