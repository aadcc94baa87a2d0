"""Which machines to keep warm: what they cost and whether they come, what will be needed, what to do about
it.

Three parts that know nothing of each other (``market``, ``forecast``, ``program``) and one that joins them
(``planning``). ``docs/pools.md`` is the contract. Needs the extra ``glowplug[pool]``.
"""
