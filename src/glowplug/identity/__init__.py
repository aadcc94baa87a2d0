"""Who is who in a cluster: its certificate authority, the certificates of its parts, tokens to join with."""
