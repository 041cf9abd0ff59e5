"""Training of a codec's decoder alone, with a critic that sees the frame before."""
