"""The operating system: the only door to processes, files, links and control groups."""
