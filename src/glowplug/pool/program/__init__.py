"""The linear program: from prices, supply and demand to what to ask for and give back now, and why.

``docs/pools.md`` states it; the names here are the names there.
"""
