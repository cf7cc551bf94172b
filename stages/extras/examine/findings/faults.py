"""All checks by name, in the order in which they are told: a fault of files may be the cause of one of behaviour."""

from collections.abc import Callable

from stages.config.errors import UserError
from stages.extras.examine.findings import behaviour, folder_keys, forms, weights
from stages.extras.examine.findings.finding import (
    TEXTS,
    CheckRecord,
    Examination,
    Finding,
    NotEnough,
    State,
)
from stages.extras.examine.findings.sides import Examined

Check = Callable[[Examined], list[Finding]]
CHECKS: dict[str, Check] = {
    each.__name__: each
    for each in (
        folder_keys.folder_parts,
        folder_keys.folder_keys,
        forms.template_missing,
        forms.template_changed,
        forms.tokenizer_changed,
        forms.stop_missing,
        weights.not_whole,
        weights.unchanged,
        weights.merged_twice,
        weights.merged_at_another_scale,
        weights.points_elsewhere,
        weights.rows_untrained,
        behaviour.ends,
        behaviour.other_form,
        behaviour.other_bos,
        behaviour.answers_unlikelier,
        behaviour.learnt,
        behaviour.group_reversed,
        behaviour.loops,
        behaviour.far,
    )
}


def examine(examined: Examined) -> Examination:
    """Run all checks, and return what they found. What two checks see is told once."""
    findings = list[Finding]()
    records = list[CheckRecord]()
    for name, check in CHECKS.items():
        of_check = list[Finding]()
        reason = ""
        state = State.nothing
        try:
            of_check = check(examined)
        except (NotEnough, UserError) as error:  # or a file that cannot be read
            state, reason = State.not_enough, str(error)
        if of_check:
            has_fault = any(finding.is_fault for finding in of_check)
            state = State.fault if has_fault else State.difference
        findings += of_check
        texts = TEXTS["checks"][name]
        records.append(CheckRecord(name, texts["compares"], texts["blind"], state, reason))
    of_keys = [finding for finding in findings if finding.key]
    of_checks = [finding for finding in findings if not finding.key]
    findings = folder_keys.without_repeats(of_keys, of_checks) + of_checks
    findings.sort(key=order_of)
    return Examination(findings, records)


def order_of(finding: Finding) -> tuple[bool, bool]:
    """Return the place of a finding: certain faults first, then others, then differences."""
    return not finding.is_fault, not finding.certain
