"""Files: whole-or-nothing writing, limits on what is read, safetensors, images, films."""
