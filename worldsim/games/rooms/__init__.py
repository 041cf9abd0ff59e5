"""Generated maps of rooms for Doom: drawing, viewing and writing them."""
