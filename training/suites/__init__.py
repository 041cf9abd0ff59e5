"""Suites of measurements that `training.evaluate` and `training.benchmark` run."""
