"""The window, keys, gamepads and the mouse: pygame, below play and the environments."""
