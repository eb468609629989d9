"""Training images: datasets, reading them fast, checking them, drawing them; `prepare` makes datasets."""
