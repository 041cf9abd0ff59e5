"""The memory's operators: the gated delta rule over one frame, reading its state, and its scan over frames.

Each comes in three forms: `reference` holds it as it is written in the paper, token by token; `frame_maps`
and `torch_scan` blocked, in PyTorch; `kernels.gpu` in Triton. Tests hold them equal; `dispatch` chooses.
"""

from kernels.dispatch import commit, read, scan_frames

__all__ = ["commit", "read", "scan_frames"]
