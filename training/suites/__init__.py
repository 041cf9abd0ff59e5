"""Suites of measurements that `training.evaluate` runs."""
