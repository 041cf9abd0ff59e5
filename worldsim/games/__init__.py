"""The real games that worlds learn from: one entry for each, and what plays them."""
