"""What the command lines start: training runs and their processes, scoring, costs, a classifier."""
