"""E-mail addresses, IP addresses and phone numbers, each replaced by a word in brackets.

E-mail and IP v4 are datatrove's patterns; it has none for IP v6 and phones.
"""

import ipaddress

from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.formatters.pii import PIIFormatter, PIIReplacer, public_ip_validator

from lmkit.config.sections.clean import Pii

PLACEHOLDERS = {kind: f"[{kind.name.upper()}]" for kind in Pii}
_IP6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
# Groups of digits that look like a number to call, not like a sum, a date or a version: an area code in brackets or
# three groups with one mark between them (ITU-T E.123; the first digits of the North American plan), or a leading +.
_GAP = r"[ .\-\u2010-\u2015\u00a0]"
_PHONE = (
    r"(?<![\w.+$€£/-])(?:"
    rf"\+\d{{1,3}}(?:{_GAP}|/)?(?:\(\d{{1,5}}\)(?:{_GAP}|/)?)?\d{{1,5}}(?:(?:{_GAP}|/)?\d{{2,5}}){{1,5}}"
    rf"|(?:(?:1{_GAP}?)?\([2-9]\d\d\){_GAP}?|(?:1{_GAP})?[2-9]\d\d{_GAP})[2-9]\d\d{_GAP}\d{{4}}"
    rf"|\(0\d{{1,5}}\){_GAP}?\d{{2,5}}(?:{_GAP}?\d{{2,5}}){{0,3}}"
    rf"|0\d{{1,4}}(?:{_GAP}|/)\d{{3,4}}{_GAP}\d{{3,5}}"
    r")(?![\w-])(?!\.\d)"
)


def _is_phone(found: str) -> bool:
    """E.164: 15 digits at most; below 9 it is more often something else."""
    return 9 <= sum(c.isdigit() for c in found) <= 15


def _is_public_ip6(found: str) -> bool:
    try:
        return ipaddress.IPv6Address(found).is_global
    except ValueError:
        return False


class Scrub(BaseFormatter):
    """Replaces what tells who somebody is, and counts it."""

    name = "pii"

    def __init__(self, kinds: list[Pii]):
        super().__init__()
        theirs = PIIFormatter(email_replacement=PLACEHOLDERS[Pii.email], ip_replacement=PLACEHOLDERS[Pii.ip])
        ip4 = PIIReplacer(rf"(?<![\d.]){theirs.ip_replacer.regex.pattern}(?!\d|\.\d)", (PLACEHOLDERS[Pii.ip],))
        ip4.validator = public_ip_validator
        replacers = {
            Pii.email: [theirs.emails_replacer],
            Pii.ip: [ip4, PIIReplacer(_IP6, (PLACEHOLDERS[Pii.ip],), _is_public_ip6)],
            Pii.phone: [PIIReplacer(_PHONE, (PLACEHOLDERS[Pii.phone],), _is_phone)],
        }
        self.replacers = [(kind, replacer) for kind in Pii if kind in kinds for replacer in replacers[kind]]

    def format(self, text: str) -> str:
        for kind, replacer in self.replacers:
            before = text.count(PLACEHOLDERS[kind])
            text = replacer.replace(text)
            if found := text.count(PLACEHOLDERS[kind]) - before:
                self.stat_update(kind.name, value=found)
        return text
