"""How much a network costs and how long it takes: counts, measurements, estimates, budgets."""
