"""The words: every kind as a frozen struct, and the pure functions over them."""
