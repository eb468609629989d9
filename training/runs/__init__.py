"""The run directory: what is in it, resuming from it, scores in it, and the processes that work on it."""
