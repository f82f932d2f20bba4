"""Problems with numbers as answers: judged as lm-evaluation-harness judges gsm8k, of what a model writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from ctd_core.config.evaluation import Evaluate, Problems
from ctd_core.errors import UsageError
from ctd_core.evaluation import problems
from ctd_core.evaluation.problems import ask_problems, is_right, numbers_in, read_problems
from ctd_core.generation.sampler import Written
from tests.support.models import llama
from tests.support.tokenizers import TOTAL

HARNESS = {  # as lm_eval/tasks/gsm8k/gsm8k.yaml has them
    "exact_match (strict-match)": RegexFilter(r"#### (\-?[0-9\.\,]+)", 0),
    "exact_match (flexible-extract)": RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
}
IGNORED = [",", r"\$", r"(?s).*#### ", r"\.$"]
PIECES = st.sampled_from(["#### ", "####", "-", "$", ".", ",", "1", "24", "1,000", " ", "\n", "so", "= "])
WRITTEN = st.lists(PIECES, max_size=12).map("".join)


@given(WRITTEN, st.sampled_from(["24", "#### 24", "1 + 23 = 24\n#### 24", "1,000", "-24", "#### 1000", "124"]))
def test_numbers_are_taken_out_and_compared_as_the_harness_does(text, answer):
    for rule, number in numbers_in(text).items():
        ((extracted,),) = HARNESS[rule].apply([[text]], [{}])
        assert (number or "[invalid]").strip() == extracted
        judged = exact_match_hf_evaluate(
            [extracted], [answer], regexes_to_ignore=IGNORED, ignore_case=True, ignore_punctuation=False
        )
        assert is_right(number, answer) == bool(judged["exact_match"])


def of_file(tmp_path, lines, **options):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = {"kind": "jsonl", "paths": [str(file)], "prompt": "question", "response": "answer"}
    return Problems.model_validate({"corpus": corpus} | options)


class Recites:
    """Writes what it was given, whatever the prompt."""

    texts: tuple[tuple[str, bool], ...] = ()
    stops = ()

    def __init__(self, model):
        self._tokenizer = TOTAL["byte-level BPE, 600"]()

    def write(self, prompts, stops, options, seed):
        ids = [(self._tokenizer(text, add_special_tokens=False)["input_ids"], ended) for text, ended in self.texts]
        return [
            Written([*given, *([min(stops)] if ended else [])], [-0.5] * (len(given) + ended)) for given, ended in ids
        ]


def test_shares_that_are_right_come_with_standard_errors(tmp_path, monkeypatch):
    options = of_file(tmp_path, [{"question": "Q?", "answer": "5 + 19 = 24 #### 24"}] * 4)
    monkeypatch.setattr(
        Recites, "texts", ((" #### 24.", True), (" it is 24", True), (" 7 #### 24 25", False), (" ?", True))
    )
    monkeypatch.setattr(problems, "TransformersSampler", Recites)
    tokenizer, shares = TOTAL["byte-level BPE, 600"](), []
    model = llama(len(tokenizer))
    found = ask_problems(model, tokenizer, read_problems(options), options, "sums", "student", shares.append)
    assert found.figures == {
        "exact_match (strict-match)": 0.5, "exact_match (flexible-extract)": 0.5, "ended by itself": 0.75
    }  # fmt: skip
    assert found.errors["ended by itself"] == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert (found.task, found.model, found.questions, shares) == ("sums", "student", 4, [1.0])


def test_batches_change_nothing(tmp_path):
    lines = [{"question": "What is " + " + ".join("1" * n), "answer": str(n)} for n in range(1, 8)]
    tokenizer = TOTAL["byte-level BPE, 600"]()
    model = llama(len(tokenizer))
    found = [
        ask_problems(model, tokenizer, read_problems(options), options, "sums", "student")
        for options in (of_file(tmp_path, lines, max_new_tokens=5, batch_size=size) for size in (1, 3, 16))
    ]
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_asked_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="prompt and response"):
        Problems.model_validate({"corpus": {"kind": "jsonl", "paths": ["x"]}})
    with pytest.raises(UsageError, match=r"evaluate\.problems: .*line 2: there is question"):
        read_problems(of_file(tmp_path, [{"question": "?", "answer": "1"}, {"question": "?"}]))
    with pytest.raises(ValueError, match="'gsm8k' names a task and problems"):
        Evaluate.model_validate({
            "tasks": {"names": ["gsm8k"]}, "problems": {"gsm8k": of_file(tmp_path, []).model_dump()}
        })  # fmt: skip
    for answer in ("28 shells", "so #### 28 shells", "twenty-eight", "", "\u22127", "1/2", "2:30"):
        lines = [{"question": "?", "answer": "1"}, {"question": "?", "answer": answer}]
        with pytest.raises(UsageError, match=r"evaluate\.problems: number 2: its answer gives no number"):
            read_problems(of_file(tmp_path, lines))
    for answer in ("28", "-28", "$1,000.50", "so\n#### 28 ", "28."):
        assert len(read_problems(of_file(tmp_path, [{"question": "?", "answer": answer}]))) == 1
    asked = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}]
    with pytest.raises(UsageError, match="number 1: it has other messages than a question and its answer"):
        read_problems(of_file(tmp_path, [{"question": asked, "answer": "2"}]))
    with pytest.raises(ValueError, match="deduplicate is not for problems"):
        Problems.model_validate({"corpus": {"kind": "jsonl", "paths": ["x"], "prompt": "q", "response": "a",
                                            "deduplicate": True}})  # fmt: skip
    with pytest.raises(UsageError, match="number 1: its question is empty"):
        read_problems(of_file(tmp_path, [{"question": " ", "answer": "1"}]))
    tokenizer = TOTAL["byte-level BPE, 600"]()
    options = of_file(tmp_path, [{"question": "on and on " * 900, "answer": "1"}])
    with pytest.raises(UsageError, match=r"evaluate\.problems\.sums: number 1: .* tokens and 256 new ones"):
        ask_problems(llama(len(tokenizer)), tokenizer, read_problems(options), options, "sums", "student")
