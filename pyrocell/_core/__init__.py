"""The few helpers that all rooms use: seeds, threads, progress, messages."""
