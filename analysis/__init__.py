"""What happened in training, as figures and numbers: D's scores, reconstructions, attention, features, neighbours."""
