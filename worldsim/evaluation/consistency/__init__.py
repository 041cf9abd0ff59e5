"""The consistency suite: does a world remember? Measurements that good pictures alone cannot pass."""
