"""The image tasks of :mod:`glowplug.types.image`, each a function from a task to a JSON-ready result."""
