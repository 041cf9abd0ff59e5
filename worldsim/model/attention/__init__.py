"""Attention inside a frame, and reading of what came before it: softmax or the gated delta rule."""
