import pytest

from catp.calibration.data.vqa_accuracy import CONTRACTIONS, normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # lower case, articles, number words
        ("The Red Car", "red car"),
        ("a an the", ""),
        ("theatre", "theatre"),
        ("None", "0"),
        ("Ten of eleven", "10 of eleven"),
        ("someone", "someone"),
        # contractions
        ("dont", "don't"),
        ("Its 5 OCLOCK", "its 5 o'clock"),
        ("it's", "it's"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # the table has it with a capital, and words are in lower case by then
        # punctuation: a space within a word, nothing next to a space
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black/ white", "black white"),
        ("black/white / red", "blackwhite red"),  # one slash next to a space takes all slashes along
        ("t-shirt", "t shirt"),
        ("t-shirt, jeans", "t shirt jeans"),
        ("yes!", "yes"),
        ("what?!", "what"),
        ('"stop"', "stop"),
        ("[x]{y}(z)", "x y z"),
        ("5:30 & 10% #1 $2 *", "5:30 & 10% #1 $2 *"),  # not on the list
        ("men's", "men's"),
        # a comma between digits takes all punctuation out without a space
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("1, 2", "1 2"),
        ("a,b", "b"),  # the comma becomes a space, and then "a" is an article
        # periods go unless a digit follows
        ("St. John's", "st john's"),
        ("3.", "3"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("u.s.a.", "usa"),
        ("." * 40, "." * 8),  # only the first 32
        # white space
        ("\n on\tthe  table \n", "on table"),
        ("", ""),
    ],
)
def test_normalisation_by_hand(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


def test_contractions_only_move_apostrophes() -> None:
    assert not {key for key, value in CONTRACTIONS.items() if key.replace("'", "") != value.replace("'", "")}


@pytest.mark.parametrize(("same", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)])
def test_ten_people_of_whom_some_said_the_same(same: int, expected: float) -> None:
    others = ["dog"] * (10 - same)
    assert vqa_accuracy("cat", ["cat"] * same + others) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("n", range(4, 13))
def test_it_is_the_mean_over_leaving_each_one_out(n: int) -> None:
    for same in range(n):
        answers = ["cat"] * same + ["dog"] * (n - same)
        turns = [min(1, (answers[:i] + answers[i + 1 :]).count("cat") / 3) for i in range(n)]
        assert vqa_accuracy("cat", answers) == pytest.approx(sum(turns) / n)


def test_answers_are_normalised_on_both_sides() -> None:
    answers = ["two", "2", "2.", "The 2", *["many"] * 6]
    assert vqa_accuracy("2", answers) == 1.0
    assert vqa_accuracy(" Two!\n", answers) == 1.0
    assert vqa_accuracy("many", answers) == 1.0


def test_nothing_is_normalised_where_all_people_agree() -> None:
    assert vqa_accuracy("yes", ["yes"] * 10) == 1.0
    assert vqa_accuracy(" yes\n", ["yes\t"] * 10) == 1.0  # white space at the ends always goes
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1.0


def test_few_people() -> None:
    assert vqa_accuracy("Two dogs.", ["2 dogs"]) == 1.0
    assert vqa_accuracy("dogs", ["2 dogs"]) == 0.0
    assert [vqa_accuracy(p, ["cat", "dog"]) for p in ("cat", "cow")] == [0.5, 0.0]
    assert vqa_accuracy("cat", ["cat", "cat"]) == vqa_accuracy("cat", ["cat"] * 3) == 1.0
    # Each of the two cats left out: 1 of the needed 2 is left; the dog left out: both are.
    assert vqa_accuracy("cat", ["cat", "cat", "dog"]) == pytest.approx((0.5 + 0.5 + 1) / 3)
    with pytest.raises(ValueError, match="no answers"):
        vqa_accuracy("cat", [])
