"""What `data.form` and `data.audit` do to rows, as far as a type cannot say what is possible."""

from stages.config.blocks.data import Audit, Form
from stages.config.choices import AUDIT_ACTIONS, AUDIT_CODES, AUDIT_FIXES, AUDIT_THRESHOLDS, Command
from stages.config.errors import UserError, one_of
from stages.config.schema import Config


def refuse(cfg: Config) -> None:
    """Raise UserError for the first setting that cannot work."""
    formed(cfg.data.form)
    audited(cfg.data.audit)
    audit, contaminated = cfg.data.audit, cfg.data.audit.actions.get("contaminated", "keep")
    if audit.against and "contaminated" not in audit.actions and cfg.stage != Command.audit:
        raise UserError(
            "data.audit.against does nothing: data.audit.actions={contaminated: drop} takes those rows out."
        )
    if contaminated != "keep" and not audit.against:
        raise UserError("data.audit.actions.contaminated: by what? data.audit.against=[{path: FILE}] says it.")


def formed(form: Form) -> None:
    """How many system prompts a policy wants."""
    given, policy = len(form.system_prompts or []), form.system or "keep"
    wanted = {"insert": (given == 1, "one"), "vary": (given > 1, "two or more, to draw from")}
    enough, told = wanted.get(policy, (given == 0, "none"))
    if not enough:
        raise UserError(f"data.form.system={policy} takes {told} of data.form.system_prompts, and there are {given}.")


def audited(audit: Audit) -> None:
    """Codes, what is done about them, and from where on."""
    one_of("data.audit.actions", audit.actions, AUDIT_CODES)
    one_of("data.audit.actions", audit.actions.values(), AUDIT_ACTIONS)
    one_of("data.audit.thresholds", audit.thresholds, AUDIT_THRESHOLDS)
    for code, action in audit.actions.items():
        if action == "fix" and code not in AUDIT_FIXES:
            raise UserError(
                f"data.audit.actions.{code}=fix: there is no one way to mend that, but for {', '.join(AUDIT_FIXES)}. "
                "Drop or quarantine them."
            )
    for code, threshold in audit.thresholds.items():
        low, high = AUDIT_THRESHOLDS[code]
        if not low <= threshold <= high:
            raise UserError(f"data.audit.thresholds.{code}={threshold:g} must be from {low:g} to {high:g}.")
