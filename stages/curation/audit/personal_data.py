"""What should not be learnt by heart: keys and passwords, and what leads to a person. Numbers that have check digits
are taken for what they look like only where the digits are right."""

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
FICTIONAL = re.compile(r"555|123.?4|000")  # as telephone numbers in stories have
SOCIAL = re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")
CARD = re.compile(r"(?<!\d[ -])\b(?:\d[ -]?){12,18}\d\b")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")


def secret(text: str) -> str | None:
    """A key that opens something. Its first characters are shown."""
    found = SECRET.search(text)
    return f"{found[0][:12]}…" if found else None


def personal(text: str) -> str | None:
    """An address, a telephone number, a card or an account of somebody's, but for those that are plainly invented."""
    for found in EMAIL.finditer(text):
        if not INVENTED.search(found[1].lower()):
            return found[0]
    for found in PHONE.finditer(text):
        if not FICTIONAL.search(found[0]):
            return found[0].strip()
    for pattern, holds in ((SOCIAL, lambda number: number != "123-45-6789"), (CARD, luhn), (IBAN, mod_97)):
        for found in pattern.finditer(text):
            if holds(found[0]):
                return found[0]
    return None


def luhn(number: str) -> bool:
    """Whether the digits of a card's number add up (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdigit()][::-1]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)]
    return len(set(digits)) > 2 and digits[-1] in (3, 4, 5, 6) and sum(doubled) % 10 == 0


def mod_97(account: str) -> bool:
    """Whether the check digits of an account's number are right (ISO 13616)."""
    plain = account.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
