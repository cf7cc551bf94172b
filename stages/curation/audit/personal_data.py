"""Patterns of secrets and personal data, which a model should not memorize, with their check digits."""

import re

SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{60,}"
    r"|\bsk-[A-Za-z0-9_-]{24,}|\bhf_[A-Za-z0-9]{30,}\b|\bxox[abprs]-[\w-]{20,}|\bAIza[\w-]{35}\b"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
EMAIL = re.compile(r"\b[\w.+-]+@((?:[\w-]+\.)+[a-z]{2,})\b", re.IGNORECASE)
INVENTED = re.compile(r"(^|\.)(example|test|domain|company|email|mail|website|yourdomain|abc|xyz)\.\w+(\.\w+)?$")
PHONE = re.compile(r"(?<![\d.$-])(\+\d{1,3}[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\d.-]\d|\d)")
FICTIONAL = re.compile(r"555|123.?4|000")  # digits of telephone numbers in fiction
SOCIAL = re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")
CARD = re.compile(r"(?<!\d[ -])\b(?:\d[ -]?){12,18}\d\b")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")


def secret(text: str) -> str | None:
    """Return the first 12 characters of a key or token, or None."""
    match = SECRET.search(text)
    return f"{match[0][:12]}…" if match else None


def personal(text: str) -> str | None:
    """Return an email address, IBAN, or telephone, social security or card number that is not plainly invented."""
    for match in EMAIL.finditer(text):
        if not INVENTED.search(match[1].lower()):
            return match[0]
    for match in PHONE.finditer(text):
        if not FICTIONAL.search(match[0]):
            return match[0].strip()
    checks = (SOCIAL, lambda number: number != "123-45-6789"), (CARD, passes_luhn), (IBAN, passes_mod_97)
    for pattern, is_valid in checks:
        for match in pattern.finditer(text):
            if is_valid(match[0]):
                return match[0]
    return None


def passes_luhn(number: str) -> bool:
    """Return whether a payment card number has a right check digit (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)]
    return len(set(digits)) > 2 and digits[-1] in (3, 4, 5, 6) and sum(doubled) % 10 == 0


def passes_mod_97(account: str) -> bool:
    """Return whether an IBAN has right check digits (ISO 13616)."""
    plain = account.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
