"""The training of a network: its state, one step of it, and the loop around that step."""
