"""Use of the memory: return recall, paired histories, probes, and teacher against converted world."""
