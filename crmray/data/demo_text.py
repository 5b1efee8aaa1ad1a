"""Made-up wording of the demo org's cases and mails: what is said depends on the kind of case and its tone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

REASONS = (
    "Delivery", "Damage", "Defect", "Invoice", "Missing part", "Spare part", "Usage", "Availability", "Advice",
)  # fmt: skip
"""what a case is about"""
SUBJECTS = {
    "Delivery": ("Late delivery of {}", "Where is {}", "Delivery of {}"),
    "Damage": ("{} arrived damaged", "Scratches on {}", "Problem with {}"),
    "Defect": ("{} does not work", "Fault of {}", "Problem with {}"),
    "Invoice": ("Invoice for {}", "Wrong sum for {}", "Question about {}"),
    "Missing part": ("{} is not complete", "Part of {} missing", "Problem with {}"),
    "Spare part": ("Spare part for {}", "Replacement for {}", "Question about {}"),
    "Usage": ("How to set up {}", "Manual of {}", "Question about {}"),
    "Availability": ("Availability of {}", "Is {} in stock", "Question about {}"),
    "Advice": ("Which {} fits", "Colours of {}", "Question about {}"),
}
GREETINGS = ("Hello, ", "Hi team, ", "Good morning, ", "To whom it may concern, ", "Dear support, ", "", "")
BODIES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("complaint", "negative"): (
        ("Delivery", "the order of {} came {} late and nobody told us. This is unacceptable"),
        ("Delivery", "the courier lost {} and we have been put off for {}. What a mess"),
        ("Damage", "{} arrived damaged, and after {} of waiting there is still no answer. A terrible experience"),
        ("Damage", "the box of {} was torn and all in it broken. {} later nobody cares. I am furious"),
        ("Defect", "we are very disappointed with {}. It broke after {} and support ignored us"),
        ("Defect", "{} is useless to us, it stopped working. {} without a solution: we look at other suppliers"),
        ("Invoice", "we were charged twice for {} and it took {} to reach a person. I have lost patience"),
        ("Invoice", "the refund for {} is overdue by {}. This is a disgrace"),
        ("Missing part", "for the third time a part of {} is missing. Waiting {} for a reply is a disgrace"),
        ("Missing part", "half of {} was not in the parcel and for {} we hear only excuses. Shameful"),
    ),
    ("complaint", "neutral"): (
        ("Delivery", "the delivery of {} was {} after the promised date. Please let us know what happened"),
        ("Delivery", "{} has been on its way for {}. Please check where the parcel is"),
        ("Damage", "{} has a scratch. We noticed it after {}. Can it be exchanged"),
        ("Damage", "{} came with a dent in its case. It was delivered {} ago. How do we return it"),
        ("Defect", "{} shows a fault since {}. Please advise how to return it"),
        ("Defect", "{} switches itself off, for {} now. Is it under warranty"),
        ("Invoice", "the invoice for {} does not match the offer of {} ago. Please check"),
        ("Invoice", "we have paid for {} {} ago, yet a reminder came. Please correct it"),
        ("Missing part", "one part of {} is missing. It was delivered {} ago"),
        ("Missing part", "the screws of {} were not in the parcel of {} ago. Please send them"),
    ),
    ("complaint", "positive"): (
        ("Delivery", "there was a delay of {1} with {0}. Thanks for the quick replies, we are happy again"),
        ("Damage", "{} came with a bruise, but after {} it was exchanged. Wonderful, we only report it"),
        ("Defect", "{} had a small fault, but it was solved within {}. Your technician was very kind"),
        ("Invoice", "the sum for {} was wrong, corrected in {}. Lovely service, just for your records"),
        ("Missing part", "a bag of {} was missing and came after {}. Not a big issue, otherwise great as always"),
    ),
    ("question", "negative"): (
        ("Usage", "I still do not understand how {} works, and after {} nobody could explain it. Annoying"),
        ("Usage", "the manual of {} is awful. I wasted {} on it. Who can help"),
        ("Availability", "your site is confusing: for {1} it says that {0} is back soon. I give up"),
        ("Advice", "nobody can tell which model of {} fits us, after {} of calls. Ridiculous"),
        ("Invoice", "I have asked for a copy of the bill for {} for {}. Do you read mails at all"),
        ("Spare part", "a simple spare part for {} takes {} to find in your shop. Hopeless"),
    ),
    ("question", "neutral"): (
        ("Usage", "how is {} cleaned? We use it for {} now"),
        ("Usage", "please send the manual of {}. Ours was lost {} ago"),
        ("Availability", "could you tell me whether {} can be delivered within {}"),
        ("Availability", "when is {} in stock again? We need it within {}"),
        ("Advice", "which size of {} do you recommend? We ordered the other one {} ago"),
        ("Advice", "does {} come in other colours? We decide in {}"),
        ("Invoice", "please send a copy of the invoice for {} from {} ago"),
        ("Invoice", "which tax rate holds for {}, bought {} ago"),
        ("Spare part", "is there a spare part for {}? Ours is in use for {}"),
        ("Spare part", "can the battery of {} be replaced? It is {} old"),
    ),
    ("question", "positive"): (
        ("Usage", "we enjoy {}. After {} we wonder whether it can do more: is there a course"),
        ("Availability", "great service last time, {} was here within {}. Could we get a second one"),
        ("Availability", "everybody here is happy with {}. Can we order more within {}, please"),
        ("Advice", "we love {} and use it for {} already. Is there a larger one"),
        ("Invoice", "thanks for the fine offer of {}. Can we pay in {}"),
        ("Spare part", "{} is a joy, even after {}. Do you sell a second bowl for it"),
    ),
}
ASIDES = (
    "",
    "",
    "",
    " By the way, our address has not changed.",
    " My colleague placed the order.",
    " We are a small team.",
)
"""say nothing of reason or tone"""
SPANS = ("two days", "a week", "ten days", "two weeks", "three weeks", "a month")
CLOSINGS = {
    "negative": (".", ". Please fix this at once.", ". I expect a refund.", "! Not again.", ". Your move."),
    "neutral": (".", ". Thank you.", ". Kind regards.", ". Please reply by mail."),
    "positive": (".", ". Many thanks!", ". Keep it up!", ". Best wishes!"),
}
FOLLOW_UPS = {
    "negative": (
        "Still nothing has happened. This is really poor.",
        "Your answer does not help at all.",
        "We are fed up with waiting.",
    ),
    "neutral": ("Any news on this?", "Here is the order number you asked for.", "Understood, we will try that."),
    "positive": ("That worked, thank you so much!", "Perfect, very quick help.", "Brilliant, all sorted."),
}
REPLIES = {
    "Delivery": (
        "We have traced your parcel: it will be with you in two working days.",
        "The parcel was held at the depot. It is on its way again, and the shipping costs are ours.",
    ),
    "Damage": (
        "We send a replacement today. Please keep the damaged one for the courier.",
        "Please send a photo of the damage; the exchange is free of charge.",
    ),
    "Defect": (
        "Please switch it off, hold the button for ten seconds and try again. If it persists we repair it for free.",
        "Your device is under warranty. A label for the return is attached.",
    ),
    "Invoice": (
        "A corrected invoice is attached; what was paid too much comes back within five days.",
        "A copy of the invoice lies in your account under Documents.",
    ),
    "Missing part": (
        "The missing part leaves our store today.",
        "We are sorry that the parcel was not complete; the rest is on its way.",
    ),
    "Spare part": (
        "The spare part is in our shop under Accessories.",
        "This part can be replaced by yourself; the article number is on its back.",
    ),
    "Usage": (
        "The manual is in your account under Documents.",
        "This video shows the first steps: see our help pages.",
    ),
    "Availability": (
        "It is in stock again next week; we can reserve one for you.",
        "It can be delivered within three working days.",
    ),
    "Advice": (
        "We recommend the larger size for more than five users.",
        "It comes in grey, blue and white; samples are free.",
    ),
}
"""what the org answers, by reason; it tells nothing of the customer"""


def pick(rng: np.random.Generator, choices: Sequence[str], count: int) -> pa.Array:
    """(count,) of the choices, drawn evenly."""
    return pa.array(choices).take(pa.array(rng.integers(0, len(choices), count)))


def _filled(
    rng: np.random.Generator, templates: Sequence[str], names: Sequence[str], product: np.ndarray
) -> tuple[np.ndarray, pa.Array]:
    """One template per row (its number), and it with the product's name and a span of time in it."""
    every = pa.array([text.format(name, span) for text in templates for name in names for span in SPANS])
    template, span = (rng.integers(0, len(choices), len(product)) for choices in (templates, SPANS))
    return template, every.take(pa.array((template * len(names) + product) * len(SPANS) + span))


def case_texts(
    rng: np.random.Generator, kind: str, tone: str, names: Sequence[str], product: np.ndarray
) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Reason (index into REASONS), subject and text of cases of one kind and tone, about the products (indices into
    names)."""
    bodies = BODIES[kind, tone]
    template, body = _filled(rng, [text for _, text in bodies], names, product)
    reason = np.array([REASONS.index(name) for name, _ in bodies])[template]
    parts = [
        pick(rng, GREETINGS, len(product)),
        body,
        pick(rng, CLOSINGS[tone], len(product)),
        pick(rng, ASIDES, len(product)),
    ]
    subject = _by_reason(rng, reason, {name: [text.format(own) for text in texts for own in names]
                                       for name, texts in SUBJECTS.items()}, product, len(names))  # fmt: skip
    return reason, subject, pc.binary_join_element_wise(*parts, "")


def _by_reason(
    rng: np.random.Generator, reason: np.ndarray, texts: dict[str, list[str]], inner: np.ndarray, width: int
) -> pa.Array:
    """One of the reason's texts per row: of each group of `width` texts that with the number `inner`."""
    sizes = np.array([len(texts[name]) // width for name in REASONS])
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    group = starts[reason] + (rng.random(len(reason)) * sizes[reason]).astype(np.int64)
    every = pa.array([text for name in REASONS for text in texts[name]])
    return every.take(pa.array(group * width + inner))


def follow_ups(rng: np.random.Generator, tone: str, count: int) -> pa.Array:
    """What customers write after a first answer."""
    return pc.binary_join_element_wise(pick(rng, GREETINGS, count), pick(rng, FOLLOW_UPS[tone], count), "")


def replies(rng: np.random.Generator, reason: np.ndarray) -> pa.Array:
    """What the org answers to cases of these reasons (indices into REASONS)."""
    return _by_reason(rng, reason, {name: list(texts) for name, texts in REPLIES.items()}, np.zeros_like(reason), 1)
