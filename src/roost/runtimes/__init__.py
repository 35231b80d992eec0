"""Process virtual machines: one application made for another platform, detected by its content, run in a sandbox by the right runtime."""
