"""Cold-start arithmetic, pictures and metrics."""
