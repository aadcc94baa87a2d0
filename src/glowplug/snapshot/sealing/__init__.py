"""Encryption at rest: where there are keys, a snapshot reaches disks and other machines sealed only.

Files are sealed before they are kept and opened, into memory, after they were fetched: the content store, the
region and the caches between see chunks as of any other file. What that promises, and what not, is in
``docs/snapshot-sealing.md``.
"""
