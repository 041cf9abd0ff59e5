"""Quality of rollouts: prediction error, control, drift, distances of distributions, outcomes."""
