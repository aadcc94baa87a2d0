"""How many slots will be needed at most until a new machine could be here, and how sure that is."""
