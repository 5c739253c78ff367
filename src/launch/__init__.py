"""Starts a run's workers with msrun, on one machine or many, and watches them: python -m src.launch."""
