"""What `benchmarks.networks` compares, each in a process of its own."""
