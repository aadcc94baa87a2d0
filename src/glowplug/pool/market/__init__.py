"""Prices and supply: what a machine costs, whether and when it comes, how long it stays."""
