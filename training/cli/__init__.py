"""How every command starts: Hydra, typed settings, `--help`, one sentence on failure."""
