"""Generated instructions whose answers a program can check: families, the words they are made of, the checks."""
