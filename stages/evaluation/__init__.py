"""Outcomes of answers, intervals over task families, and likelihoods. What an extra measures
beside them is a section of its own (`extra_sections`).

A figure goes from `answers.parquet` to the first line of the page in these steps, each of which returns another value:

1. `outcomes.read_answers`: each model's answers to the same prompts.
2. `outcomes.tabulate`: a table of which answers pass.
3. `checked.Checked.groups`: the table of each group of prompts.
4. `outcomes.rate_row`: rates and differences, with the intervals of `estimate`.
5. `results.write_results`, `results.read_results`: the figures as `results.json` has them.
6. `claims.change`: what an interval says.
7. `claims.Claim.says`: its words.
8. `stages.pages.first_screen.sentence`: the sentence, with the largest effect first."""
