"""The machine: processes, threads, memory, signals, files and locks."""
