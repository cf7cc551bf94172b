"""The commands that others build on (`stage=plan`, `stage=gate` …), and what all commands share. They read the store or use
its models, and train nothing.

The file of a command has its name; folders hold the parts of the longer ones. Further commands are in `stages/extras/`."""
