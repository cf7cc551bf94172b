"""Words and plain sentences for generated instructions."""

import random

NAMES = (
    "Ada Amir Bela Carmen Chidi Clara Dmitri Elena Farid Greta Hana Hugo Ines Ivan Jonas Kofi Lena Lucia Marek Mina "
    "Nadia Noor Olga Omar Paula Petra Quinn Rafael Rosa Samir Tara Tomas Uma Vera Viktor Wanda Yara Yusuf Zoe"
).split()
CITIES = (
    "Accra Athens Bergen Bogota Cairo Cork Dakar Delhi Dublin Geneva Hanoi Helsinki Izmir Jakarta Kyoto Lagos Lima "
    "Lisbon Lyon Madrid Malmo Milan Nairobi Oslo Porto Prague Quito Riga Seoul Tallinn Tunis Turin Vienna Warsaw"
).split()
FRUITS = "apple banana cherry fig grape kiwi lemon lime mango melon olive papaya peach pear plum quince".split()
ANIMALS = "badger bear camel crow deer dove eagle falcon fox goat hare heron horse lion lynx otter owl seal".split()
COLOURS = "amber azure beige black blue brown crimson gold green grey indigo ivory orange pink purple red teal".split()
TOOLS = "anvil bolt brush chisel clamp drill file hammer ladder lathe mallet nail pliers rasp ruler saw wrench".split()
FURNITURE = "armchair bed bench bookcase cabinet chair cupboard desk dresser lamp mirror shelf sofa stool".split()
PLANTS = "acacia aster basil cedar clover daisy fern ivy lily maple mint moss oak pine poppy rose sage tulip".split()
JOBS = "baker barber builder butcher cook dentist doctor driver farmer gardener judge nurse painter pilot".split()
CLOTHES = "apron belt blouse boot cap cloak coat glove hat jacket scarf shirt shoe skirt sock sweater".split()
NOUNS = {
    "fruit": FRUITS,
    "animal": ANIMALS,
    "colour": COLOURS,
    "tool": TOOLS,
    "furniture": FURNITURE,
    "plant": PLANTS,
    "job": JOBS,
    "clothing": CLOTHES,
}
# Ambiguous words: a kiwi is also a bird, a teal a duck, an orange a fruit, and some fruits are colours.
ALSO = {"kiwi": "animal", "teal": "animal", "orange": "fruit"}
ALSO |= dict.fromkeys(("cherry", "lemon", "lime", "olive", "peach", "plum"), "colour")
OBJECTS = (
    "basket bell blanket book bottle box bridge camera candle carpet clock coin compass cup door drum engine "
    "envelope flag garden gate guitar helmet jar kettle key kite letter map medal mill notebook paddle painting "
    "parcel pen piano pillow pocket radio ring rope ship spoon statue suitcase telescope tent ticket "
    "trumpet umbrella vase violin wagon wallet whistle window"
).split()
ADJECTIVES = (
    "ancient bright broken clean cold dusty empty expensive faded fragile heavy huge large light loud narrow new "
    "old painted plain quiet rare round rusty sharp shiny small smooth soft square strange striped tall thin tiny "
    "warm wet white wide wooden yellow young"
).split()
VERBS = {  # present, past
    "borrow": "borrowed", "bring": "brought", "buy": "bought", "carry": "carried", "clean": "cleaned",
    "collect": "collected", "draw": "drew", "find": "found", "fix": "fixed", "hide": "hid", "hold": "held",
    "keep": "kept", "lift": "lifted", "lose": "lost", "make": "made", "move": "moved", "notice": "noticed",
    "open": "opened", "paint": "painted", "photograph": "photographed", "pull": "pulled", "sell": "sold",
    "send": "sent", "show": "showed", "steal": "stole", "take": "took", "touch": "touched", "use": "used",
    "wash": "washed", "watch": "watched",
}  # fmt: skip
PLACES = (
    "at the airport|at the bakery|at the harbour|at the library|at the market|at the museum|at the station|"
    "behind the barn|beside the lake|in the attic|in the cellar|in the forest|in the garden|in the kitchen|"
    "in the office|in the park|in the village|near the bridge|near the river|near the school|on the balcony|"
    "on the beach|on the roof|under the stairs"
).split("|")
TIMES = (
    "after lunch|before dawn|during the storm|every morning|last night|last summer|last week|on Friday|on Monday|"
    "on Sunday|this morning|two days ago|yesterday"
).split("|")
RELATIVES = "aunt brother cousin father friend mother neighbour sister teacher uncle".split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
NUMBERS += "sixteen seventeen eighteen nineteen twenty".split()


def article(noun_phrase: str) -> str:
    """Return a noun phrase with its article: `an old book`, `a new book`."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def items(rng: random.Random, low: int, high: int) -> list[str]:
    """Return different nouns of one kind, in random order."""
    return rng.sample(NOUNS[rng.choice(sorted(NOUNS))], rng.randint(low, high))


def told_apart(*kinds: str) -> dict[str, list[str]]:
    """Return the nouns of each kind that belong to no other of these kinds."""
    return {kind: [word for word in NOUNS[kind] if ALSO.get(word) not in kinds] for kind in kinds}


def listed(words: list[str]) -> str:
    """Return words as a list in prose: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def phrase(rng: random.Random) -> str:
    """Return two to four words in lower case."""
    thing = f"{rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}"
    return rng.choice([thing, f"the {thing}", f"{thing} and {rng.choice(OBJECTS)}", article(thing)])


def sentence(rng: random.Random) -> str:
    """Return a plain sentence of four to ten words without its full stop, from one of a dozen patterns."""
    name, other, animal = rng.choice(NAMES), rng.choice(NAMES), rng.choice(ANIMALS)
    thing, place, time = rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(TIMES)
    adjective, verb = rng.choice(ADJECTIVES), rng.choice(list(VERBS.values()))
    return rng.choice(
        [
            f"{name} {verb} {article(f'{adjective} {thing}')} {time}",
            f"{name} {verb} the {thing} {place}",
            f"The {animal} sleeps {place}",
            f"My {rng.choice(RELATIVES)} {verb} {article(thing)} {time}",
            f"There is {article(f'{adjective} {thing}')} {place}",
            f"We met {name} {place}",
            f"{name} lives in {rng.choice(CITIES)} with {other}",
            f"The {thing} is {adjective} and {rng.choice(COLOURS)}",
            f"Nobody {verb} the {thing} {time}",
            f"The shop sells {rng.choice(FRUITS)} and {rng.choice(FRUITS)} juice",
            f"I saw {article(animal)} {place} {time}",
            f"{name} works as {article(rng.choice(JOBS))} in {rng.choice(CITIES)}",
        ]
    )
