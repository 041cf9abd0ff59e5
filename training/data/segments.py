"""Long sequences in segments that follow each other (truncated back-propagation through time).

Each row of a batch plays through a long sequence, a segment a step. Rows are out of step with each other, so
that every batch holds memories of all ages (docs/decisions/0015). With 3 segments and 3 rows, a letter for
each long sequence:

    step     0    1    2    3    4    5
    row 0    a0   a1   a2   d0   d1   d2
    row 1    b1   b2   e0   e1   e2   h0
    row 2    c2   f0   f1   f2   i0   i1
    block    0 for a, b, c; 1 for d, e, f; 2 for g, h, i

All rows begin at step 0 with an empty memory, wherever they are in their sequence.
"""

# B batch rows

from __future__ import annotations

import numpy as np


def places_at(step: int, num_segments: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the block of each row's long sequence and the segment of it at a step, `[B]` each."""
    ahead = np.arange(batch_size) * num_segments // batch_size
    block, segment = np.divmod(step + ahead, num_segments)
    return block, segment
