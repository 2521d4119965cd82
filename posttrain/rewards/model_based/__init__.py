"""TODO model_based."""
