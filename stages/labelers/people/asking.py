"""Questions are put to people, and what they say is kept, until every question has its answers."""

from collections.abc import Sequence

from stages.config.blocks.labels import Human
from stages.labelers.people import rows
from stages.labelers.people.questions import Question
from stages.labelers.people.server import serve
from stages.labelers.people.session import Session
from stages.store import locks, parts
from stages.store.work import Work


def answered(questions: Sequence[Question], cfg: Human, out: Work) -> Session:
    """The session of these questions when all is answered, by people here or in a file; its figures go to the node.

    Raises:
        UserError: for a file of answers that cannot be used, and an address that cannot be listened at.
        KeyboardInterrupt: where the server was stopped before that.
    """
    folder = out.calls / "people"
    # One process at a time: two of them would not know of each other's answers.
    with locks.held(locks.opened(folder / "people.lock"), "the page for people", "used"):
        session = Session([*questions], cfg.reasons or [], folder)
        try:
            if cfg.answered:
                out.say(rows.read(parts.user_path(cfg.answered), session))
            rows.write(session, out)
            if not session.complete:
                out.say(f"for people who judge elsewhere: {out / rows.PLAIN}, {out / rows.ARGILLA}")
                serve(session, cfg, out)
        finally:
            rows.write(session, out)
    out.asked["label.human"] = session.figures()
    return session
