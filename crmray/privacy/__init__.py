"""Consent, pseudonyms, redaction, and the vault: what may be known about persons, and how it is kept."""

from crmray.privacy.consent import Withheld
from crmray.privacy.guard import Guard, GuardPlan
from crmray.privacy.pseudonyms import PERSONS, Pseudonyms
from crmray.privacy.vault import Vault

__all__ = ["PERSONS", "Guard", "GuardPlan", "Pseudonyms", "Vault", "Withheld"]
