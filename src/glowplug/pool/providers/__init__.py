"""Who rents machines out: one port, and what stands behind it. ``docs/pools.md`` has their duties."""
