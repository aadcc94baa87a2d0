"""Memory captured after initialisation: key, manifest, store, proof."""
