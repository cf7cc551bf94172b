"""Questions are put to people, and what they say is kept, until every question has its answers."""

from collections.abc import Sequence

from stages.config.blocks.labels import Human
from stages.labelers.people import answer_rows
from stages.labelers.people.questions import Question
from stages.labelers.people.server import serve
from stages.labelers.people.session import Session
from stages.store import locks, plugins
from stages.store.workspace import Work


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
                out.say(answer_rows.read(plugins.user_path(cfg.answered), session))
            answer_rows.write(session, out)
            if not session.complete:
                out.say(f"for people who judge elsewhere: {out / answer_rows.PLAIN}, {out / answer_rows.ARGILLA}")
                serve(session, cfg, out)
        finally:
            answer_rows.write(session, out)
    out.asked["label.human"] = session.figures()
    return session
