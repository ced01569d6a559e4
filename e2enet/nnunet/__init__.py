"""E2ENet in nnU-Net v2: the network class of its plans, a trainer with DSFF, plans, and checkpoints both ways."""
