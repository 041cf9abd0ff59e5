"""Cost of rollouts: time and memory of a step, batch size, throughput, endurance."""
