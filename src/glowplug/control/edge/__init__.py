"""The router on a node: serves any app, from a table that the control plane keeps it supplied with."""
