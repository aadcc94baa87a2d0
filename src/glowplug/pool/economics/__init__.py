"""Where rented GPU-seconds and their money went: by app and by pool."""
