"""Training: the step, the loop, and callbacks that do one thing each."""
