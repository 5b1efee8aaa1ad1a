"""Cleaning of what customers write: facts read off the texts by hand."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from crmray.data import letters, text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It broke.\n\nOn Mon, 3 Feb 2025 at 10:11, Support wrote:\n> How are you?\n> Fine", "It broke."),
        ("It broke.\n-----Original Message-----\nFrom: a\nHello", "It broke."),
        ("Kaputt.\nVon: Service\nGesendet: Montag\nBetreff: x\n\nGuten Tag", "Kaputt."),
        ("> you said\nno, we did not", "no, we did not"),
        ("Please help.\n-- \nA. B.\nACME Ltd\nTel 1", "Please help."),
        ("Please help.\nKind regards,\nA. B.\nACME Ltd", "Please help."),
        ("Late again\nSent from my phone", "Late again"),
        ("<html><head><title>t</title></head><body><p>Late &amp; <b>broken</b></p><p>Bye</p></body></html>",
         "Late & broken Bye"),
        ("<div>New</div><blockquote>old</blockquote>", "New"),
        ("<!DOCTYPE html><html><?xml version='1.0'?><![if !mso]><p>Late</p><![endif]></html>", "Late"),
        ("No.<blockquote>a<blockquote>b</blockquote>c</blockquote>Never", "No. Never"),
        ("<blockquote>without an end", "without an end"),
        (f"<img src='data:image/png;base64,{'iVBORw0KGgo' * 1_000}'><p>Late</p>", "Late"),
        ("<p>La&shy;te &zwnj;&#8203;again</p>", "Late again"),
        ("if a < b and c > d then", "if a < b and c > d then"),
        ("so late 😡", "so late pouting face"),
        ("good \U0001f44d\U0001f3fd", "good thumbs up sign"),
        ("ｆｕｌｌ width", "full width"),
        ("Доставка опоздала, 配送が遅い", "Доставка опоздала, 配送が遅い"),
        ("zero\u200bwidth  and\x00 more", "zerowidth and more"),
        ("> only a quote", "> only a quote"),
        ("?!", ""),
        ("<br><br>", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_what_was_said(written: str, said: str):
    assert text.clean_one(written) == said


@pytest.mark.parametrize(
    ("letter", "said"),
    [
        ("Dear Anna\nwe have sent it.\nBest wishes\nTom", "we have sent it."),
        ("Dear Anna we have sent it", "we have sent it"),
        ("Dear Mrs. Ada Quix, your parcel left", "your parcel left"),
        ("Dear Mr van Dyke we sent it", "we sent it"),
        ("hi anna, your parcel left. cheers\ntom", "your parcel left."),
        ("Hello [NAME], try again", "try again"),
        ("Hi Ada and Ben, it is here", "it is here"),
        ("Guten Tag, Frau Quix, Ihr Paket ist da.\n\nMit freundlichen Grüßen\nTom Meyer\nACME", "Ihr Paket ist da."),
        ("Hallo Frau Meier Ihr Paket ist da", "Ihr Paket ist da"),
        ("Sehr geehrter Herr Dr. Quix, es kommt am Montag", "es kommt am Montag"),
        ("Bonjour Mme Dupont nous avons envoyé. Cordialement Jean", "nous avons envoyé."),
        ("Hola Ana su paquete salió. Un saludo Pedro", "su paquete salió."),
        ("It is sent Best wishes Tom ACME GmbH, Main Street 1", "It is sent"),
        ("It was sent.\nMany thanks,\nTom", "It was sent."),
        ("It is sent. Thank you Anna", "It is sent."),
        ("It shipped.\nTom", "It shipped."),
        ("Hello Ada,", ""),
        ("Best wishes Tom", ""),
        ("Es ist da. Mit freundlichen Grüßen Ihre Anna Müller", "Es ist da."),
        ("It is sent. Best regards, Will Smith", "It is sent."),
        ("It is sent. Best regards, Will", "It is sent."),
        ("It is sent. Thanks, Will", "It is sent."),
        ("It is sent. With regards, Will", "It is sent."),
        ("Hello Will, it is sent.\nElle", "it is sent."),
        ("Dear An Nguyen, it is sent", "it is sent"),
        ("It is sent. Best wishes from Anna Miller", "It is sent."),
        ("It is sent. Kind regards from everyone at the Acme team, Anna", "It is sent."),
        ("It is sent. Regards, the Acme team, Jane Roe", "It is sent."),
        ("It is sent. Thanks, the Acme team, Jane Roe", "It is sent."),
        ("It is sent kind regards anna", "It is sent"),
        ("It is sent Thank you Anna", "It is sent"),
        ("It is sent. Have a nice day, Anna", "It is sent."),
        ("Es ist da. Grüße Anna", "Es ist da."),
        ("Es ist da. Ihre Anna Quix", "Es ist da."),
        ("It is sent. Tom", "It is sent."),
        ("It is sent. - Tom", "It is sent."),
        ("It is sent.\n\nTom Meyer\nACME", "It is sent."),
        ("It is sent. Best regards, Tom\n" + "This message is for whom it names alone. " * 20, "It is sent."),
        ("Hi anna the refund is sent", "the refund is sent"),
        ("Hi anna quix the refund is sent", "the refund is sent"),
        ("Hi there Anna the refund is sent", "the refund is sent"),
        ("hello, anna, it is sent", "it is sent"),
        ("Hi\nanna\nit is sent", "it is sent"),
        ("Liebe Anna, lieber Tom, es ist da", "es ist da"),
        ("It is sent.\nJane Roe, Support\nTel. 1234", "It is sent."),
        ("It is sent. Your Anna", "It is sent."),
        ("C'est parti. Bien à vous, Elle", "C'est parti."),
        ("Re: parcel\nDear Anna,\nit is sent", "Re: parcel it is sent"),
        ("This is case 5. Dear Anna, it is sent", "This is case 5. it is sent"),
        ("Hi Anna/Tom, it is sent", "it is sent"),
        ("Hi @anna it is sent", "it is sent"),
        ("Dear [NAME] it is sent. Kind regards [NAME]", "it is sent."),
    ],
)
def test_a_letter_without_the_names_around_it(letter: str, said: str):
    assert text.clean_one(letter, anonymous=True) == said


@pytest.mark.parametrize(
    "letter",
    [
        "Hello we have it, try again", "History repeats", "We wish you all the best", "Please use Best Buy",
        "As regards Anna's order, it left", "With regards to your order we have no news",
        "Send us: Rechnung Foto", "It takes two days. Best of all, it is free.", "Thank you for asking. It is sent.",
        "With regards to Anna's order we have no news", "We sincerely regret it", "Sincerely sorry. It is sent.",
        "Thank you for your patience.", "Hello cannot do this today", "Open Monday - Friday", "It is Settings",
    ],
)  # fmt: skip
def test_what_looks_like_a_greeting_or_an_end_stays(letter: str):
    assert text.clean_one(letter, anonymous=True) == letter


def test_a_name_after_a_farewell_alone_in_its_line():
    assert letters.inner("It is sent.\nKind regards\nanna").strip() == "It is sent."


@pytest.mark.parametrize(
    ("letter", "left"),
    [
        ("Hallo, Stornierung! Erledigt.", "Erledigt."),  # as "Hallo, Thomas! Erledigt."
        ("Hi! Refund, sent today.", "sent today."),  # as "Hi! Anna, sent today."
        ("Open the page.\nSettings", "Open the page."),  # as "It shipped.\nTom"
        ("Hello,\n\nRefund approved.\n\nIt takes two days.", "Refund approved. It takes two days."),
        ("Hi! Done today, as you asked.", "Done today, as you asked."),
    ],
)
def test_a_word_where_a_name_may_stand_is_lost_rather_than_a_name_left(letter: str, left: str):
    assert text.clean_one(letter, anonymous=True) == left


@pytest.mark.parametrize(
    "mail",
    ["It is sent" + "\n" * 590 + "x", "hi" + " " * 1_000_000, "It is sent" + " \n" * 300_000 + "1", "\t\n" * 500_000],
)
def test_a_letter_of_blanks_takes_no_time(mail: str):
    started = time.thread_time()
    letters.inner(mail)
    assert time.thread_time() - started < 0.2


def test_a_farewell_before_a_long_blank_takes_no_time():
    started = time.thread_time()
    assert text.clean_one("It broke.\nregards" + " " * 20_000 + "x\nb") == "It broke. regards x b"
    assert time.thread_time() - started < 0.2


def test_a_megabyte_is_cut_and_takes_no_time():
    pieces = ("word ", "<p>", "<", "> \n", "From: a\n", "&", "\n", "a", "<!--", "<blockquote>", "data:a;base64,",
              "regards\n", "-- \n", "on a ", "Hi ", "Anna ", "Best wishes Tom ", "Hi, ",
              "kind regards ", " ", "a \n", "Thanks Anna\n", "\n\t")  # fmt: skip
    for piece in pieces:
        started = time.thread_time()  # not that of other work beside it
        said = text.clean_one(piece * (1_000_000 // len(piece)), anonymous=True)
        assert len(said) <= text.MAX_CHARS
        assert time.thread_time() - started < 2, piece


def test_columns_keep_their_order_and_nulls():
    assert text.clean(pa.chunked_array([["a", None], ["<p>b</p>", "a", "!"]])).to_pylist() == [
        "a",
        None,
        "b",
        "a",
        None,
    ]


def test_subject_and_body_are_one_text():
    subject, body = pa.array(["Late", None, "Late", None]), pa.array(["where is it", None, None, "x"])
    assert text.joined(subject, body).to_pylist() == ["Late. where is it", None, "Late", "x"]
    assert text.joined(pa.array(["Late"]), pa.array(["Late it is"])).to_pylist() == ["Late it is"]


def test_comments_do_not_nest():
    mail = "<p>Hello</p><!--[if !mso]><!--><p>Visible</p><!--<![endif]--><p>x</p><!-- hidden 77 --><p>end</p>"
    assert "hidden" not in text.clean_one(mail)
    assert "Visible" in text.clean_one(mail)
