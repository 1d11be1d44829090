"""What plans cost, before they are run: the cost model, and solvers for the best plan under a budget."""
