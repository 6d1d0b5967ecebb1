"""The terminal app. Stored text reaches a widget only through curator.safe_text."""
