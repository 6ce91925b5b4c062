"""Talk about nothing in particular: turns that tell nothing about the user. Knows words; no model."""

from __future__ import annotations

import random

_TALK = (
    ("Can you explain what a prime number is?", "A prime number is divisible only by one and by itself."),
    ("It rained all morning here.", "Then it was a good morning for a book and a cup of something warm."),
    ("Why is the sky blue?", "Air scatters short waves of light more than long ones, so the blue reaches us from all sides."),
    ("I'm thinking about baking bread.", "Flour, water, salt and yeast are all it takes. Give the dough enough time to rise."),
    (
        "What's a good way to fall asleep?",
        "A dark, cool room, no screens for an hour, and going to bed at the same time each day.",
    ),
    ("The meeting today was far too long.", "That happens. A short list of topics and a clear end help next time."),
    (
        "How do vaccines work?",
        "They show the immune system a harmless piece of a germ, so that it recognises the real one later.",
    ),
    ("I cleaned the whole kitchen.", "That must feel good. A clean kitchen invites to cook something nice."),
    ("What is the capital of Australia?", "It is Canberra, not Sydney, as many people think."),
    ("Tell me something about whales.", "Blue whales are the largest animals that ever lived, and they eat tiny krill."),
    ("I don't know what to read next.", "A collection of short stories is a good choice when you cannot decide."),
    ("How long do I boil an egg?", "About six minutes for a soft yolk, and nine to ten for a hard one."),
    ("The neighbours were loud again.", "I'm sorry. Talking to them on a calm evening sometimes helps."),
    (
        "What does a black hole do?",
        "Its gravity is so strong that nothing that comes too close, not even light, gets out again.",
    ),
    ("I went for a long walk.", "Walking clears the head. I hope that the weather was kind."),
    ("How do I remove a wine stain?", "Blot it, do not rub. Salt or sparkling water help while the stain is fresh."),
    ("Who wrote Don Quixote?", "Miguel de Cervantes wrote it, in two parts, in 1605 and 1615."),
    ("I'm a bit tired today.", "Then take it slowly. A short nap or some fresh air may help."),
    ("What's the difference between weather and climate?", "Weather is what happens today, climate is its average over years."),
    ("My plants look sad.", "Check the soil: many house plants suffer from too much water, not from too little."),
    ("How does a bicycle stay upright?", "When it tips, it steers into the fall, and its wheels come back under it."),
    ("I watched a film about penguins.", "They march far over the ice, and the fathers keep the egg warm all winter."),
    ("What is inflation?", "It means that prices rise over time, so the same money buys less."),
    (
        "The soup turned out too salty.",
        "A peeled potato cooked along in it, or a splash of cream, takes some of the salt away.",
    ),
    ("How do I learn a language quickly?", "A little every day, spoken aloud, is worth more than a long evening once a week."),
    ("I can't find my keys.", "Try the pockets of what you wore last, and the place where you put down the bags."),
    ("What makes a rainbow?", "Sunlight is bent and mirrored in drops of rain, each colour at a slightly other angle."),
    ("The bus was late again.", "That is annoying. At least it came in the end."),
    ("Do fish sleep?", "Yes, in their way: they rest, hardly move, and react more slowly."),
    ("I'd like to paint the hall.", "Light colours make a narrow hall look wider. Try a sample on the wall first."),
    ("What is yeast?", "It is a tiny fungus that eats sugar and gives off gas, which makes dough rise."),
    ("It's getting dark early now.", "It is. A lamp in the corner makes the evenings friendlier."),
)


def small_talk(chance: random.Random, turns: int) -> list[tuple[str, str]]:
    """Choose turns of a conversation that tells nothing about the user: what is said, and what is answered."""
    order: list[tuple[str, str]] = []
    while len(order) < turns:
        order += chance.sample(_TALK, len(_TALK))
    return order[:turns]
