"""Architectures and learned preprocessing shared by two tasks or more; no Ray, no files."""
