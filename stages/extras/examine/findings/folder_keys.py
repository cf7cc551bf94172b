"""Rows of the comparison of both folders as findings, so that an examination names every fault once."""

from collections.abc import Sequence

from stages.extras.examine.findings.finding import OF_FILES, TEXTS, Finding, NotEnough
from stages.extras.examine.findings.sides import Examined
from stages.extras.examine.folders.difference import Level


def folder_keys(examined: Examined) -> list[Finding]:
    """Find the keys that break answers, and show those that change them."""
    findings = list[Finding]()
    for row in examined.folder_rows:
        seen = row.in_words(examined.folder_titles)
        if row.level is Level.breaks:
            finding = examined.finding("key_breaks", seen, OF_FILES, certain=True)
        elif row.level is Level.changes:
            finding = examined.finding("key_changes", seen, OF_FILES, is_fault=False)
        else:
            continue
        findings.append(finding.about(row.key))
    return findings


def folder_parts(examined: Examined) -> list[Finding]:
    """Raise NotEnough if a part of the folders could not be compared. It finds nothing itself, so that the findings of the
    other parts stay."""
    for row in examined.folder_rows:
        if row.level is Level.unknown:
            raise NotEnough(row.in_words(examined.folder_titles))
    return []


def without_repeats(of_keys: Sequence[Finding], of_checks: Sequence[Finding]) -> list[Finding]:
    """Return the findings of keys that no finding of another check is about."""
    named = set[str]()
    for finding in of_checks:
        named.update(TEXTS["findings"][finding.name].get("keys", ()))
    return [finding for finding in of_keys if finding.key not in named]
