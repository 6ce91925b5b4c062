"""The values of generated facts: vocabularies, and what is made of them by chance. Knows words; no model."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from hmt_memory.train.facts import word
from hmt_memory.train.relation_words import LISTED

Value = Callable[[random.Random], str]


def listed(text: str) -> tuple[str, ...]:
    """Take apart a list of words that commas part."""
    return tuple(text.split(", "))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words(
    "Abigail Adele Alice Amelia Amina Bella Bianca Bridget Carmen Cecilia Chiara Chloe Daria Deborah Dorothy Eliza Emma Erica "
    "Evelyn Flora Frances Freya Georgia Grace Gwen Hazel Heidi Ilse Iris Isabel Jane Jasmine Joan Josephine Judith Katya Keiko "
    "Kirsten Leila Lena Lotte Lucia Mabel Maeve Margot Martha Matilda Mei Miriam Monica Naomi Natalia Nell Olivia Pamela "
    "Pauline Penelope Rachel Renata Ruth Sabine Sally Sandra Silvia Stella Sunita Susan Tamara Tessa Valerie Veronica Zahra"
)
MEN = _words(
    "Aaron Abel Ahmed Albert Alfred Andrew Anton Antonio Axel Ben Boris Callum Carl Chen Christian Clemens Colin Darius David "
    "Dennis Diego Dominik Douglas Edward Elias Enzo Eric Ethan Fabian Fergus Fernando Finn Francis George Gerald Graham Hakan "
    "Hans Henrik Henry Howard Ian Isaac Jack James Javier Joel Johan Joseph Juan Julian Keith Kofi Kurt Lorenzo Louis Luke "
    "Malcolm Marcus Matthew Miguel Nathan Neil Nils Omar Pablo Patrick Peter Philip Raj Raymond Rohan Roland Sam Sanjay Sergio"
)
_SURNAMES = _words(
    "Abbott Adeyemi Aldana Baker Barros Becker Bellini Carver Castillo Chandra Costa Cramer Dalton Diaz Dupont Eklund Eriksen "
    "Falk Ferrari Fischer Fontaine Garcia Gruber Haas Hadley Hansen Ito Jansen Jensen Kaya Keller Kim Kowalski Lambert Larsen "
    "Lindqvist Lopez Marsh Mendes Meyer Moreau Nakamura Novak Okafor Olsen Park Patel Petrov Pereira Reyes Rossi Sato Schmidt "
    "Silva Singh Soto Sullivan Tanaka Vance Vogel Weber Whitfield Yilmaz Zeller"
)
_MONTHS = _words("January February March April May June July August September October November December")
_ADJECTIVES = _words("Silver Hidden Broken Quiet Burning Crooked Frozen Golden Distant Paper Hollow Wild Midnight Blue Seventh")
_NOUNS = _words("Lantern Orchard Harbour River Clock Garden Mountain Letter Winter Bridge Shadow Island Mirror Train Tower Fox")
_PLAIN: Mapping[str, Sequence[str]] = {
    "job": listed(
        "bus driver, welder, architect, florist, tailor, judge, farmer, chemist, roofer, paramedic, accountant, butcher, "
        "photographer, electrician, geologist, violin maker, tour guide, zookeeper, journalist, barber, pharmacist, weaver, "
        "nurse, carpenter, translator, pilot, baker, librarian, sound engineer, interpreter, undertaker, chimney sweep"
    ),
    "colour": listed(
        "dark green, yellow, light blue, orange, purple, white, brown, crimson, mint green, navy blue, pink, beige, grey"
    ),
    "drink": listed(
        "ginger ale, apple juice, green tea, cider, hot chocolate, lemonade, tomato juice, iced tea, buttermilk, cola"
    ),
    "season": listed("spring, summer, autumn, early winter, late summer, the rainy season"),
    "game": listed("chess, checkers, backgammon, go, ludo, dominoes, mahjong, reversi, nine men's morris"),
    "flower": listed("the tulip, the daisy, the peony, the sunflower, the lily, the poppy, the iris, the orchid, the dahlia"),
    "icecream": listed(
        "pistachio, vanilla, lemon, hazelnut, mint chocolate, salted caramel, coconut, blackberry, coffee, rum raisin"
    ),
    "wild": listed(
        "the otter, the owl, the giraffe, the hedgehog, the whale, the lynx, the penguin, the badger, the red panda"
    ),
    "snack": listed(
        "cheese, dried apple, carrots, popcorn, crackers, sausage, peanut butter, rice cakes, boiled eggs, blueberries"
    ),
    "dessert": listed("apple crumble, tiramisu, rice pudding, cheesecake, plum tart, baklava, lemon sorbet, chocolate mousse"),
    "food": listed(
        "lentil soup, risotto, dumplings, ramen, goulash, tacos, pancakes, falafel, moussaka, lasagne, paella, fish pie"
    ),
    "hobby": listed(
        "pottery, chess, rowing, origami, bird watching, stargazing, knitting, model trains, wood carving, baking bread, "
        "magic tricks, stamp collecting, amateur radio, mushroom hunting, painting miniatures, ballroom dancing, crosswords"
    ),
    "sport": listed(
        "judo, table tennis, volleyball, fencing, handball, water polo, archery, badminton, rugby, triathlon, squash"
    ),
    "instrument": listed("violin, trumpet, guitar, harp, clarinet, organ, banjo, saxophone, flute, ukulele, tuba, trombone"),
    "allergen": listed(
        "peanuts, shellfish, pollen, penicillin, strawberries, dust, soy, bee stings, nickel, milk, mould, hazelnuts"
    ),
    "diet": listed("vegan, vegetarian, gluten-free, low-salt, kosher, halal, lactose-free, low-carb, sugar-free, high-protein"),
    "coffee": listed(
        "flat white, double espresso, oat milk latte, cappuccino, iced mocha, americano, decaf with cream, cortado"
    ),
    "animal": listed(
        "rabbit, parrot, hamster, gecko, guinea pig, hedgehog, corn snake, budgie, axolotl, iguana, mouse, tarantula"
    ),
    "size": listed("extra small, small, medium, large, extra large"),
    "language": listed(
        "Finnish, Welsh, Japanese, Portuguese, Swahili, Greek, Korean, Polish, Arabic, Hindi, Danish, Hungarian, Thai"
    ),
    "subject": listed(
        "physics, medieval history, marine biology, economics, philosophy, statistics, forestry, archaeology, nursing"
    ),
    "storage": listed(
        "under the doormat, in the top drawer, behind the books, in the blue box in the attic, on the hook in the hall, "
        "in the cellar, above the fridge, in the biscuit tin, inside the piano bench, at the back of the wardrobe, "
        "in the glove compartment, beneath the bed, in the laundry basket, next to the boiler, in the shed behind the paint"
    ),
    "room": listed(
        "the library, the small hall, the town hall, the east wing, the canteen, the basement, the old chapel, the annex"
    ),
    "topic": listed(
        "the budget cuts, the new logo, hiring plans, test results, the office move, travel costs, safety rules, old roofs, "
        "overtime, the supplier contract, the holiday roster, missing receipts, the summer party"
    ),
    "pattern": listed(
        "black with white paws, ginger, grey and fluffy, spotted, striped, all white, golden brown, bluish grey, jet black"
    ),
    "spot": listed(
        "behind the bakery, next to the church, near the old mill, in front of the cinema, by the lake, opposite the school"
    ),
    "blood": listed("A positive, A negative, B positive, B negative, AB positive, AB negative, O positive, O negative"),
    "ingredient": listed(
        "nutmeg, orange peel, a spoon of honey, smoked paprika, cardamom, buttermilk, a pinch of salt, dark rum"
    ),
    "plant": listed(
        "tomatoes, lupins, rhubarb, roses, pumpkins, raspberries, garlic, hollyhocks, runner beans, asters, sage, leeks"
    ),
    "plan": listed(
        "clean the gutters, visit the zoo, paint the fence, hike to the waterfall, bake a cake, repair the bike, go fishing, "
        "sort old photos, build a bookcase, see a play, pick cherries, wash the windows, camp by the lake, run a half marathon"
    ),
    "gift": listed(
        "silk scarf, telescope, fountain pen, wool blanket, tea set, jigsaw puzzle, camera, umbrella, chess set, wristwatch"
    ),
    "reason": listed(
        "the night shifts, the low pay, the long commute, a quarrel with the manager, the noise, the endless meetings"
    ),
    "feeling": listed("nervous, thrilled, sad, relieved, hopeful, angry, curious, overwhelmed, calm, homesick, proud, worried"),
    "seatpref": listed("a window seat, an aisle seat, a seat in the front row, a seat near the exit, a seat at the very back"),
    "dislike": listed(
        "loud music, olives, small talk, early mornings, perfume, traffic jams, horror films, beetroot, paperwork"
    ),
    "fear": listed("spiders, heights, thunder, deep water, the dark, needles, clowns, lifts, snakes, crowds, flying, moths"),
    "meeting": listed(
        "at a bus stop, at a cooking class, on a ski lift, in a lift that got stuck, at a wedding, in a choir, "
        "on a night train, in a queue for bread, at a flea market, at a dance lesson, in a hospital waiting room"
    ),
    "goal": listed(
        "opening a bookshop, sailing around the world, a house by the sea, writing a novel, running a marathon, seeing the "
        "northern lights, learning to fly, a small vineyard, restoring an old mill, a year in Patagonia"
    ),
    "transport": listed("tram, bus, ferry, bike, train, metro, moped, cable car, shared taxi"),
    "weekday": listed("Monday, Tuesday, Wednesday, Thursday, Friday"),
    "count": listed("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve"),
    "given": (*WOMEN, *MEN),
    "month": _MONTHS,
}


def _word(chance: random.Random) -> str:
    return word(chance, "training")


def _one_of(words: Sequence[str]) -> Value:
    return lambda chance: chance.choice(words)


def _clock(first: int, last: int) -> Value:
    return lambda chance: (
        f"{chance.randrange(first, last)}:{chance.choice(('00', '10', '20', '30', '40', '50', '04', '16', '38', '52'))}"
    )


def _digits(count: int) -> Value:
    """Make digits that end on an even one, as all numbers of training do."""
    return lambda chance: "".join(chance.choice("0123456789") for _ in range(count - 1)) + chance.choice("02468")


def _even(low: int, high: int, form: str = "{}") -> Value:
    return lambda chance: form.format(2 * chance.randrange(low // 2, high // 2))


def _either(*values: Value) -> Value:
    return lambda chance: chance.choice(values)(chance)


def _made(form: str, letters: str = "ABCDEFGH") -> Value:
    """Make a value from a form: ~ stands for a word, # for a digit, @ for a letter, and the last digit is even."""

    def make(chance: random.Random) -> str:
        last = form.rfind("#")
        parts = (
            chance.choice("02468" if at == last else "123456789") if c == "#" else chance.choice(letters) if c == "@" else c
            for at, c in enumerate(form)
        )
        return re.sub(r"~", lambda _: _word(chance), "".join(parts))

    return make


def _pick(form: str, **lists: Sequence[str]) -> Value:
    return lambda chance: form.format(word=_word(chance), **{name: chance.choice(words) for name, words in lists.items()})


_ALL = _PLAIN["given"]
VALUES: Mapping[str, Value] = {
    **{name: _one_of(words) for name, words in (*LISTED.items(), *_PLAIN.items())},
    "word": _word,
    "fullname": _pick("{given} {surname}", given=_ALL, surname=_SURNAMES),
    "doctor": _either(_pick("Dr. {surname}", surname=_SURNAMES), _pick("Dr. {given} {surname}", given=_ALL, surname=_SURNAMES)),
    "company": _pick(
        "{word} {end}", end=listed("Logistics, Foods, Systems, Textiles, Energy, Insurance, Motors, Press, Robotics")
    ),
    "town": _either(
        _word, _pick("{t}", t=listed("Lisbon, Oslo, Krakow, Ghent, Porto, Leeds, Turin, Bergen, Graz, Quito, Osaka"))
    ),
    "place": _either(
        _word, _pick("{t}", t=listed("Crete, Iceland, Malta, Sardinia, Norway, Peru, Vietnam, Madeira, Corfu, Cuba"))
    ),
    "address": lambda chance: (
        f"{2 * chance.randrange(1, 90)} {_word(chance)} {chance.choice(['Street', 'Lane', 'Road', 'Square'])}"
    ),
    "title": _either(_pick("The {a} {n}", a=_ADJECTIVES, n=_NOUNS), _pick("{word} and the {n}", n=_NOUNS)),
    "band": _either(_pick("The {a} {n}s", a=_ADJECTIVES, n=_NOUNS[:6]), _pick("{word} {n}", n=_NOUNS)),
    "team": _pick("{word} {n}", n=listed("Rovers, Tigers, Falcons, Rangers, Wolves, Comets, Bears, Giants")),
    "school": _pick("{word} {n}", n=listed("University, College, Academy, High School, Institute of Technology")),
    "hotel": _either(_pick("{word} Inn"), _pick("{a} {n} Hotel", a=_ADJECTIVES, n=_NOUNS), _pick("Grand {word}")),
    "brand": _either(_word, _made("~ @##")),
    "age": _even(20, 96),
    "years": _pick("{n} years", n=listed("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")),
    "date": lambda chance: f"{chance.choice(_MONTHS)} {2 * chance.randrange(1, 15)}",
    "time": _clock(5, 24),
    "early": _clock(4, 10),
    "noon": _clock(11, 15),
    "late": _clock(20, 24),
    "price": _either(_even(2, 900, "{} euros"), _even(2, 900, "{} pounds"), _made("$#.##"), _made("$##.##")),
    "phone": _either(_made("0### ######"), _made("555-####"), _made("0## ### ## ##")),
    "even_ring": _even(48, 70),
    "even_shoe": _even(34, 50),
    "even_hat": _even(52, 64),
    "height": _even(150, 204, "{} centimetres"),
    "weight": _even(48, 120, "{} kilos"),
    "flight": _made("@@ ####"),
    "seat": _made("##@"),
    "gate": _made("@##"),
    "terminal": _even(2, 12),
    "reference": _made("@#@@##"),
    "platform": _even(2, 30),
    "pin": _either(_digits(4), _digits(6), _made("####@")),
    "password": lambda chance: f"{_word(chance).lower()}{chance.choice(['-', '_', '!', ''])}{_digits(2)(chance)}",
    "idnumber": _either(_digits(8), _made("@@-#####"), _made("### ### ###")),
    "money": _either(_even(200, 4000, "{} euros"), _even(200, 4000, "{} dollars"), _even(20, 900, "{} francs")),
    "plate": _either(_made("@@ ## @@@"), _made("@-@@ ###")),
    "year": _even(1950, 2024),
    "medicine": lambda chance: _word(chance).lower() + chance.choice(["ol", "ine", "ax", "idon", "ium"]),
    "dose": _even(10, 500, "{} milligrams"),
    "server": lambda chance: f"{_word(chance).lower()}-{_digits(2)(chance)}",
    "version": _made("#.#.#"),
    "oven": _even(140, 240, "{} degrees"),
    "minutes": _even(10, 90, "{} minutes"),
    "amount": _even(100, 900, "{} grams"),
}
