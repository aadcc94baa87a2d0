"""Faults of whole machines and of the network between them, with real agents and gateways."""
