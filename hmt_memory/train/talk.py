"""Talk about nothing in particular: turns that tell nothing about the user. Knows words; no model.

What is said in evaluation is said in no training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from .facts import Split

_TRAINING = (
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

_EVALUATION = (
    (
        "Why do cats purr?",
        "Muscles in the throat make the folds of the larynx tremble. They do it when content, and when in need.",
    ),
    ("The queue at the post office was endless.", "Those minutes stretch. At least the parcel is on its way."),
    ("How do I get rid of fruit flies?", "Put out a glass of vinegar with a drop of soap, and cover the fruit bowl."),
    ("I tried to whistle today.", "It takes patience: wet lips, a small opening, and a steady breath."),
    (
        "What is a solstice?",
        "The day when the sun stands highest or lowest at noon, so the longest or the shortest of the year.",
    ),
    ("It is so windy out there.", "Then hold on to your umbrella, or better leave it behind."),
    (
        "How does a microwave heat things?",
        "It makes molecules of water turn to and fro very quickly, which warms what they are in.",
    ),
    ("I think I slept on the wrong side.", "Slow stretches and something warm on the neck help most."),
    ("Explain what a metaphor is.", "It calls one thing by the name of another, as in a sea of troubles."),
    ("The elevator smelled of paint.", "Fresh paint needs air. It should be gone in two days."),
    ("How deep is the Mariana Trench?", "Almost eleven kilometres at its lowest known point."),
    ("I dropped a plate and it broke.", "Shards bring luck, they say. Mind your feet until it is swept."),
    ("Is a tomato a fruit?", "To a botanist it is, since it grows from a flower and holds seeds. To a cook it is a vegetable."),
    ("I'm waiting for the kettle.", "A watched kettle does boil, it only feels slower."),
    ("What does a conductor do?", "Shows the beat, balances the players, and decides how the music should breathe."),
    (
        "The traffic lights were out at the crossing.",
        "Then everyone has to look at one another for once. Good that nothing happened.",
    ),
    ("How are pearls made?", "An oyster covers a grain that got inside with layer upon layer of mother-of-pearl."),
    ("I feel like humming all day.", "A fine sign. Which tune it is hardly matters."),
    ("Why do leaves turn red?", "When the green pigment breaks down, other colours come out that it had hidden."),
    ("The shop had run out of milk.", "Oats or nuts make a fair replacement until tomorrow."),
    (
        "How do I fold a fitted sheet?",
        "Tuck the corners into each other, lay it flat, and fold in thirds. Nobody does it perfectly.",
    ),
    ("I saw a double rainbow.", "In the second one the colours stand in reverse, because the light is mirrored twice."),
    ("What is a leap second?", "One that is put in now and then so that clocks keep pace with the turning earth."),
    ("The radio played nothing but advertisements.", "Silence can be the better programme."),
    ("How do penguins find their mates?", "By voice: each has a call of its own, which the other knows among thousands."),
    (
        "I would like to be more punctual.",
        "Plan to arrive ten minutes early, and treat the journey as part of the appointment.",
    ),
    ("What is the tallest mountain?", "Mount Everest above the sea, Mauna Kea if you count from its foot."),
    ("Someone left the gate open.", "A spring on the hinge closes it without anybody thinking of it."),
    ("How does soap clean?", "One end of its molecules likes water and the other one grease, so the grease is carried away."),
    ("I spilled ink on the table.", "Dab it at once with cold water, then with a little alcohol on a cloth."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci, over many years from about 1503."),
    ("That podcast was three hours long.", "Played a little faster it fits a walk better."),
    ("Why is the sea salty?", "Rivers wash minerals out of the rocks, and they stay when water evaporates."),
    ("I can't stop yawning.", "It is catching, too. Open a window for a minute."),
    ("What are fossils?", "Traces of living things that turned to stone, such as shells, bones and footprints."),
    ("The clouds look like sheep today.", "Those small white flocks often announce a change of weather."),
)
_TALK: Mapping[Split, Sequence[tuple[str, str]]] = {"training": _TRAINING, "evaluation": _EVALUATION}


def small_talk(chance: random.Random, turns: int, split: Split = "training") -> list[tuple[str, str]]:
    """Choose turns of a conversation that tells nothing about the user: what is said, and what is answered.

    Args:
        chance: decides which.
        turns: how many.
        split: whose words they are.
    """
    talk = _TALK[split]
    order: list[tuple[str, str]] = []
    while len(order) < turns:
        order += chance.sample(talk, len(talk))
    return order[:turns]
