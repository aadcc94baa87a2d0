"""The content store: chunks by hash, in tiers. Images and snapshots keep all their bytes here."""
