"""The use of trained networks: images, videos, style mixing, projection, reconstruction, and the viewer."""
