"""Curation of training data: rules, audit, harmonization, joining and mixing of rows."""
