"""How good a model is: ranks, metrics of users, and sums over users, the only thing that leaves a node."""
