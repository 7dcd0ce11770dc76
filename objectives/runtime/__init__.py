"""What runs need whatever they compute: devices, memory, processes that work together, seeds, progress."""
