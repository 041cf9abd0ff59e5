"""The memory's operators: the gated delta rule over one frame, and its scan over frames.

`reference` holds the recurrence as it is written in the paper, token by token; `frame_maps` the blocked form
that everything uses. A test holds them equal.
"""

from kernels.frame_maps import commit, frame_maps, read, scan_frames

__all__ = ["commit", "frame_maps", "read", "scan_frames"]
