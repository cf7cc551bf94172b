"""`stage=plan`, and what commands share: the last run, results, tables of settings. Other commands are in `stages/extras/`.

Commands read the store or use its models, and train nothing."""
