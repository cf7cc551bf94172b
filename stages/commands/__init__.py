"""The commands (`stage=plan`, `stage=chat` …): they read the store or use its models, and train nothing.

The file of a command has its name; folders hold the parts of the longer ones."""
