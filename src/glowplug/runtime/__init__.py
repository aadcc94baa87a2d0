"""Container runtimes behind one port."""
