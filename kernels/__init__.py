"""The memory's operators: the gated delta rule over one frame, and its scan over frames.

`reference` holds the recurrence as it is written in the paper, token by token; `frame_maps` the blocked form
in PyTorch; `triton_launch` what trains on a GPU. Tests hold them equal; `dispatch` chooses.
"""

from kernels.dispatch import scan_frames
from kernels.frame_maps import commit, frame_maps, read

__all__ = ["commit", "frame_maps", "read", "scan_frames"]
