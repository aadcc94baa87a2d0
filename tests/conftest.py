"""What all tests share: the same start, whoever starts them."""

from __future__ import annotations

import signal

from hypothesis import settings

# A job that a shell put in the background inherits SIGINT ignored, and hands that on to every program it
# starts; the programs under test are to be interrupted as from a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
