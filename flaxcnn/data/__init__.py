"""Data sets to batches: preparing, loading, the order of examples, and what happens to the pixels."""
