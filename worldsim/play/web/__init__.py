"""Play in a browser: the page, its connections, and who plays or spectates."""
