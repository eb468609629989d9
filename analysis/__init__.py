"""Figures and numbers about training runs: D's scores, reconstructions, attention, features, neighbours, reports."""
