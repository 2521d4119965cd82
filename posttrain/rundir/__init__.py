"""TODO rundir."""
