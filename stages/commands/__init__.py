"""The words of `stage=` that build nothing: they look at the store, or use what is in it.

A file is such a word; what it is made of lies in a folder.
"""
