"""The options and the configuration of a training run, and published settings."""
