"""Words every room shares: errors, ids, clocks, specifications and records. Imports nothing of ours."""
