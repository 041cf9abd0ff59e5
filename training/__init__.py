"""Commands that record, train and measure; Hydra lives here."""

import os
import time

STARTED = time.monotonic()
"""When this process began, but for the start of Python: what a machine lent by the minute counts from."""
SPIN_COUNT = "30000"
"""How often a waiting thread of PyTorch looks for work before it sleeps (GNU OpenMP's own number is 300,000).

While it looks, another program that needs its core waits, and with it the thread that the work is for. On two
cores, a step of play took 53 ms with this number when nothing else ran and 400 ms beside one busy program;
with 100,000 it was 52 ms and over a second, with 10,000 it was 56 and 225 ms, with 3,000 74 and 125 ms.
"""

# Here, because this runs before any command, and play.py, loads PyTorch, which reads it once.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
