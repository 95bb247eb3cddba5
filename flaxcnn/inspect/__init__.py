"""Tables of networks and figures of runs."""
