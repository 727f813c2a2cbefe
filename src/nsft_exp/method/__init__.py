"""Methods: which examples are trained on, and their loss. Nothing else."""
