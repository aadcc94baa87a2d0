"""The ``glowplug`` command."""
