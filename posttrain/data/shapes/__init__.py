"""TODO shapes."""
