"""Data parallelism over devices and processes, and the memory that a compiled step needs."""
