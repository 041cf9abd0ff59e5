"""Where and how a world is computed: device, precision, threads, CUDA graphs, timing, interrupts."""
