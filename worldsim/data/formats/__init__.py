"""Formats of others that hold gameplay: readers, found by what a folder holds."""
