"""The official VQA accuracy of an answer, from the answers that people gave.

Follows `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of github.com/GT-Vision-Lab/VQA (BSD licence), its slips
included: a number that is to be compared with published ones must not be computed better than they were.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENOUGH = 3
"""An answer that this many other people gave is fully right."""

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")

# The first group was meant to look behind for a digit and is always true: "3." loses its period, ".5" and "3.5" don't.
# The original also passes re.UNICODE where re.sub takes the number of replacements, so periods after the 32nd stay.
PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
MOST_PERIODS = int(re.UNICODE)

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}

# As in the original, where "somebody'd" loses its apostrophe, and the entries with a capital never apply, because words
# are in lower case when they are looked up.
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've", "couldnt": "couldn't",
    "couldn'tve": "couldn't've", "couldnt've": "couldn't've", "didnt": "didn't", "doesnt": "doesn't", "dont": "don't",
    "hadnt": "hadn't", "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't",
    "hed": "he'd", "hed've": "he'd've", "he'dve": "he'd've", "hes": "he's", "howd": "how'd", "howll": "how'll",
    "hows": "how's", "Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm", "Ive": "I've", "isnt": "isn't", "itd": "it'd",
    "itd've": "it'd've", "it'dve": "it'd've", "itll": "it'll", "let's": "let's", "maam": "ma'am",
    "mightnt": "mightn't", "mightnt've": "mightn't've", "mightn'tve": "mightn't've", "mightve": "might've",
    "mustnt": "mustn't", "mustve": "must've", "neednt": "needn't", "notve": "not've", "oclock": "o'clock",
    "oughtnt": "oughtn't", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "shant": "shan't",
    "shed've": "she'd've", "she'dve": "she'd've", "she's": "she's", "shouldve": "should've", "shouldnt": "shouldn't",
    "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've", "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've", "somebodyll": "somebody'll",
    "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've", "someone'dve": "someone'd've",
    "someonell": "someone'll", "someones": "someone's", "somethingd": "something'd",
    "somethingd've": "something'd've", "something'dve": "something'd've", "somethingll": "something'll",
    "thats": "that's", "thered": "there'd", "thered've": "there'd've", "there'dve": "there'd've",
    "therere": "there're", "theres": "there's", "theyd": "they'd", "theyd've": "they'd've", "they'dve": "they'd've",
    "theyll": "they'll", "theyre": "they're", "theyve": "they've", "twas": "'twas", "wasnt": "wasn't",
    "wed've": "we'd've", "we'dve": "we'd've", "weve": "we've", "werent": "weren't", "whatll": "what'll",
    "whatre": "what're", "whats": "what's", "whatve": "what've", "whens": "when's", "whered": "where'd",
    "wheres": "where's", "whereve": "where've", "whod": "who'd", "whod've": "who'd've", "who'dve": "who'd've",
    "wholl": "who'll", "whos": "who's", "whove": "who've", "whyll": "why'll", "whyre": "why're", "whys": "why's",
    "wont": "won't", "wouldve": "would've", "wouldnt": "wouldn't", "wouldnt've": "wouldn't've",
    "wouldn'tve": "wouldn't've", "yall": "y'all", "yall'll": "y'all'll", "y'allll": "y'all'll",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "youd": "you'd",
    "youd've": "you'd've", "you'dve": "you'd've", "youll": "you'll", "youre": "you're", "youve": "you've",
}  # fmt: skip


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How right an answer is, 0 to 1.

    Each of the `n` people is left out once: the prediction scores `min(1, same answers among the others / 3)`, and
    the accuracy is the mean over the `n` turns. With ten people, 1, 2, 3 and 4 or more same answers give 0.3, 0.6,
    0.9 and 1. Both sides are normalised first; where all people gave one and the same answer the official code
    normalises neither, so that "Yes" is wrong against ten times "yes".

    The official data has ten answers each. Beyond it, by a rule of our own: with fewer than four answers all others,
    not three, must agree, so that what everybody says is fully right (two answers: 0, 0.5 or 1); a single answer is
    right, 1, if it equals the prediction after normalisation, else 0.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("no answers to compare with")
    prediction, answers = _clean(prediction), [_clean(answer) for answer in answers]
    if len(answers) == 1 or len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    n, same = len(answers), answers.count(prediction)
    if n == 1:
        return float(same)
    enough = min(ENOUGH, n - 1)
    # Leaving out one of the `same` leaves same - 1 of them; leaving out anyone else leaves them all.
    turns = (n - same) * min(same, enough) + same * min(max(same - 1, 0), enough)
    return turns / (n * enough)


def normalize_answer(answer: str) -> str:
    """The form in which answers are compared: no punctuation, digits for number words, no articles, lower case."""
    return _process_words(_process_punctuation(_clean(answer)))


def _clean(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _process_punctuation(text: str) -> str:
    """Punctuation within a word becomes a space; next to a space, or anywhere near a number like 1,000, it goes."""
    has_number = COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        # It is the text as it was that decides, not the text with earlier marks gone.
        goes = has_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if goes else " ")
    return PERIOD.sub("", result, count=MOST_PERIODS)


def _process_words(text: str) -> str:
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
