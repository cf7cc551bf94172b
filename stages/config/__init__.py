"""The keys of the configuration: types, words to choose among, what TRL may be told. Imports nothing of ours."""
