"""Outcomes of answers, intervals over task families, and likelihoods. A new suite of tests goes here."""
