"""Reading files from outside: one file a format, one shared row shape."""
