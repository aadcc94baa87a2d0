"""Glowplug: model servers that scale to zero and come back in seconds."""
