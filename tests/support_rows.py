"""Preferences of a support desk as people have them: canned answers with few words changed, in two languages."""

import random
from typing import Any

GREETINGS = {
    "en": ("Hello,", "Hi there,", "Good morning,", ""),
    "de": ("Hallo,", "Guten Tag,", "Guten Morgen,", ""),
}
ITEMS = {
    "en": ("kettle", "lamp", "desk", "camera", "printer", "keyboard", "router", "headset"),
    "de": ("Wasserkocher", "Lampe", "Schreibtisch", "Kamera", "Drucker", "Tastatur", "Router"),
}
# by language: the request, the better and the worse answer
CASES = {
    "en": (
        (
            "my {item} from order {order} arrived broken. What can I do now?",
            "I am sorry that your {item} arrived broken. Please send us a photo of it, and we will ship a new one "
            "within two working days, free of charge. You need not send the broken one back.",
            "Read the terms on our page.",
        ),
        (
            "where is order {order}? I have been waiting for my {item} for two weeks.",
            "Thank you for your patience. Order {order} left our warehouse and is with the carrier. You get a link by "
            "mail with which you can follow it every day until it is at your door.",
            "It is on its way, please wait.",
        ),
        (
            "how do I return the {item} that I bought last month?",
            "You can return it within sixty days. Open your account, choose the order, press the button for a return, "
            "print the label and bring the parcel to any post office. The money comes back within five days.",
            "Returns are in your account.",
        ),
        (
            "I was charged twice for the {item} in order {order}.",
            "I can see both charges, and the second one was our mistake. I have sent it back to your card, where it "
            "appears within three working days. I am sorry for the trouble that this made.",
            "Ask your bank about that.",
        ),
    ),
    "de": (
        (
            "mein {item} aus Bestellung {order} kam kaputt an. Was kann ich jetzt tun?",
            "Es tut mir leid, dass Ihre Ware kaputt ankam. Bitte schicken Sie uns ein Bild davon, dann senden wir "
            "innerhalb von zwei Werktagen kostenlos Ersatz. Das kaputte Teil brauchen Sie nicht zu schicken.",
            "Lesen Sie unsere Bedingungen.",
        ),
        (
            "wo bleibt Bestellung {order}? Ich warte seit zwei Wochen auf {item}.",
            "Vielen Dank für Ihre Geduld. Bestellung {order} ist beim Versand. Sie bekommen per Mail einen Link, mit dem "
            "Sie jeden Tag sehen, wo das Paket gerade ist, bis es bei Ihnen ankommt.",
            "Sie kommt schon noch.",
        ),
        (
            "wie gebe ich den Artikel {item} zurück, den ich im letzten Monat gekauft habe?",
            "Sie können ihn sechzig Tage lang zurückgeben. Wählen Sie im Konto die Bestellung, drucken Sie das Etikett "
            "und bringen Sie das Paket zur Post. Das Geld ist in fünf Tagen wieder da.",
            "Das steht im Konto.",
        ),
    ),
}


def support_rows(count: int, seed: int = 7, german: float = 0.45) -> list[dict[str, Any]]:
    """Return canned answers to requests, of which 5% are copies of an earlier row."""
    drawn = random.Random(seed)
    rows = list[dict[str, Any]]()
    while len(rows) < count:
        if rows and drawn.random() < 0.05:
            rows.append(drawn.choice(rows))
            continue
        language = "de" if drawn.random() < german else "en"
        request, better, worse = drawn.choice(CASES[language])
        words = {"item": drawn.choice(ITEMS[language]), "order": drawn.randrange(10_000, 99_999)}
        message = f"{drawn.choice(GREETINGS[language])} {request.format(**words)}".strip()
        rows.append(
            {
                "customer_message": message,
                "language": language,
                "chosen": better.format(**words),
                "rejected": worse.format(**words),
            }
        )
    return rows
