"""Start of every command: Hydra, typed settings, `--help`, one sentence on failure."""
