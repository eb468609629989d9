"""What trained networks are used for: images, videos, mixing, projection, reconstruction."""
