"""Seeing it: the arithmetic, pictures, metrics and traces of cold starts. Reads records, changes nothing."""
