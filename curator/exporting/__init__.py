"""Writing preferences: one file a format, from one shared row shape (curator.preferences)."""
