"""The truth: objects as named values, in memory or in SQLite."""
