"""What a training run is: its options as dataclasses, and published settings."""
