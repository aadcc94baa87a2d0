"""The rolling loop: what is there and what is needed goes in, what to ask for and give back comes out.

``planner.Planner`` is pure: no input or output, no threads, no clock of its own. ``loop`` and ``ledger`` are
what keeps it running and its memory safe.
"""
