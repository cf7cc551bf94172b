"""All faults by name, in the order in which they are told: a fault of files may be the cause of one of behaviour."""

from collections.abc import Callable

from stages.evaluation.examined import behaviour, forms, weights
from stages.evaluation.examined.sides import Examined

# each returns the clause on a fault; '' without it
FAULTS: dict[str, Callable[[Examined], str]] = {
    each.__name__: each
    for each in (
        forms.template_missing,
        forms.template_changed,
        forms.tokenizer_changed,
        forms.stop_missing,
        weights.not_whole,
        weights.unchanged,
        weights.merged_twice,
        weights.started_elsewhere,
        weights.rows_untrained,
        behaviour.end_not_learnt,
        behaviour.long_answers_cut,
        behaviour.labels_reversed,
        behaviour.loops,
        behaviour.far,
    )
}


def find_faults(found: Examined) -> dict[str, str]:
    """Return the clauses on the faults that are found, by name."""
    clauses = {name: find(found) for name, find in FAULTS.items()}
    return {name: clause for name, clause in clauses.items() if clause}
