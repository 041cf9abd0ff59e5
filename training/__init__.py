"""Commands that record, train and measure; Hydra lives here."""

import os

SPIN_COUNT = "100000"
"""How often a waiting thread of PyTorch looks for work before it sleeps (GNU OpenMP's own number is 300,000).

While it looks, another program that needs its core waits, and with it the thread that the work is for. On
two cores, 30 small layers beside a program of higher priority took 906 ms with OpenMP's number and 361 ms
with this one. Sleeping at once (`OMP_WAIT_POLICY=passive`) is better still there, but on a quiet machine it
doubled the time of a step of play, from 74 ms to 154 ms.
"""

# Here, because this runs before any command, and play.py, loads PyTorch, which reads it once.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
