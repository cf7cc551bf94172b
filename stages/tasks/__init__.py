"""Generated instructions whose answers a program can check: task families, their words, and the checks."""
