"""Start a run's workers with msrun, on one machine or many, and watch them: python -m src.launch."""
