"""TODO simple."""
