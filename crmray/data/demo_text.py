"""Made-up wording of the demo org's cases and mails: what is said depends on the kind of case and its tone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SUBJECTS = {
    "complaint": (
        "Late delivery of {}",
        "Problem with {}",
        "{} arrived damaged",
        "Wrong invoice for {}",
        "Refund for {}",
        "{} does not work",
    ),
    "question": (
        "Question about {}",
        "How to set up {}",
        "Availability of {}",
        "Invoice copy for {}",
        "Spare part for {}",
        "Colours of {}",
    ),
}
GREETINGS = ("Hello, ", "Hi team, ", "Good morning, ", "To whom it may concern, ", "Dear support, ", "", "")
BODIES = {
    ("complaint", "negative"): (
        "the order of {} came {} late and nobody told us. This is unacceptable",
        "we are very disappointed with {}. It broke after {} and support ignored us",
        "{} arrived damaged, and after {} of waiting there is still no answer. A terrible experience",
        "we were charged twice for {} and it took {} to reach a person. I have lost patience",
        "for the third time something is wrong with {}. Waiting {} for a reply is a disgrace",
        "{} is useless to us as it came. {} without a solution: we are looking at other suppliers",
    ),
    ("complaint", "neutral"): (
        "the delivery of {} was {} after the promised date. Please let us know what happened",
        "{} shows a fault since {}. Please advise how to return it",
        "the invoice for {} does not match the offer of {} ago. Please check",
        "one part of {} is missing. It was delivered {} ago",
        "{} has a scratch. We noticed it after {}. Can it be exchanged",
    ),
    ("complaint", "positive"): (
        "{} had a small fault, but your driver was very kind and it was solved in {}. I only want to report it",
        "there was a delay of {1} with {0}. Thanks for the quick replies, we are happy again",
        "{} came with a wrong label. Not a big issue after {}, otherwise great as always",
    ),
    ("question", "negative"): (
        "I still do not understand how {} works, and after {} nobody could explain it. Annoying",
        "the manual of {} is awful. I wasted {} on it. Who can help",
        "your site is confusing: I searched {1} for {0} and gave up",
    ),
    ("question", "neutral"): (
        "could you tell me whether {} can be delivered within {}",
        "which size of {} do you recommend? We ordered the other one {} ago",
        "please send a copy of the invoice for {} from {} ago",
        "is there a spare part for {}? Ours is in use for {}",
        "does {} come in other colours? We decide in {}",
    ),
    ("question", "positive"): (
        "we love {} and use it for {} already. Is there a larger one",
        "great service last time. {} was here within {}. Could we get a second one",
        "everybody here is happy with {}. Can we order more within {}, please",
    ),
}
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
REPLIES = (
    "Thank you for your message. We are looking into it and will come back to you.",
    "We have forwarded your request to the team in charge.",
    "Your request has been registered. A colleague will answer soon.",
    "Please find the details in your account. Let us know if anything is open.",
)


def _pick(rng: np.random.Generator, choices: Sequence[str], count: int) -> pa.Array:
    return pa.array(choices).take(pa.array(rng.integers(0, len(choices), count)))


def _filled(rng: np.random.Generator, templates: Sequence[str], names: Sequence[str], product: np.ndarray) -> pa.Array:
    """One template per row, with the product's name and a span of time in it."""
    every = pa.array([text.format(name, span) for text in templates for name in names for span in SPANS])
    template, span = (rng.integers(0, len(choices), len(product)) for choices in (templates, SPANS))
    return every.take(pa.array((template * len(names) + product) * len(SPANS) + span))


def case_texts(
    rng: np.random.Generator, kind: str, tone: str, names: Sequence[str], product: np.ndarray
) -> tuple[pa.Array, pa.Array]:
    """Subject and text of cases of one kind and tone, about the products (indices into names)."""
    subject = _filled(rng, SUBJECTS[kind], names, product)
    parts = [
        _pick(rng, GREETINGS, len(product)),
        _filled(rng, BODIES[kind, tone], names, product),
        _pick(rng, CLOSINGS[tone], len(product)),
    ]
    return subject, pc.binary_join_element_wise(*parts, "")


def follow_ups(rng: np.random.Generator, tone: str, count: int) -> pa.Array:
    """What customers write after a first answer."""
    return pc.binary_join_element_wise(_pick(rng, GREETINGS, count), _pick(rng, FOLLOW_UPS[tone], count), "")


def replies(rng: np.random.Generator, count: int) -> pa.Array:
    """What the org answers; it tells nothing of the customer."""
    return _pick(rng, REPLIES, count)
