"""What a model writes: where it stops, what padding changes, and what a corpus of it looks like."""

import copy

import pytest
import torch
from tokenizers import decoders

from ctd_core.errors import UsageError
from ctd_core.generation.sampler import Sampling, TransformersSampler, Written
from ctd_core.generation.writing import Writer
from ctd_core.text.chat import ChatTemplate
from ctd_core.text.documents import Turn
from tests.support.chat_templates import KINDS, TEMPLATES, chat_tokenizer
from tests.support.models import EndingSampler, llama
from tests.support.tokenizers import TOTAL

GREEDY = Sampling(12, temperature=0.001)


def test_prompts_of_other_lengths_in_a_batch_change_nothing():
    sampler = TransformersSampler(llama(300))
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    together = sampler.write(prompts, set(), GREEDY, seed=0)
    alone = [sampler.write([prompt], set(), GREEDY, seed=1)[0] for prompt in prompts]
    assert [ids for ids, _ in together] == [ids for ids, _ in alone]
    assert all(len(ids) == len(logprobs) == 12 for ids, logprobs in together)


@pytest.mark.parametrize("options", [GREEDY, Sampling(12, temperature=0), Sampling(12, temperature=1.3, top_p=0.8)])
def test_log_probabilities_are_the_models_own_whatever_is_drawn_and_where_texts_end(options):
    model = llama(300)
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    stops = {TransformersSampler(model).write(prompts, set(), options, 0)[1].ids[4]}
    for prompt, (ids, logprobs) in zip(
        prompts, TransformersSampler(model).write(prompts, stops, options, 0), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        own = logits[len(prompt) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), own, atol=1e-4, rtol=1e-4)
        assert stops.isdisjoint(ids[:-1])


def test_a_text_ends_with_the_first_stop():
    sampler = TransformersSampler(llama(300))
    ((free, _),) = sampler.write([[5, 6]], set(), GREEDY, seed=0)
    stop = free[4]
    ((stopped, _),) = sampler.write([[5, 6]], {stop}, GREEDY, seed=0)
    assert stopped == free[: free.index(stop) + 1]


def test_draws_depend_on_the_seed_and_leave_other_random_numbers_alone():
    sampler, options = TransformersSampler(llama(300)), Sampling(20)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    results = [sampler.write([[5, 6]] * 4, set(), options, seed) for seed in (0, 0, 1)]
    assert torch.rand(1) == expected
    assert results[0] == results[1] != results[2]
    assert len({tuple(ids) for ids, _ in results[0]}) == 4


def test_draws_are_of_the_likeliest_tokens_that_have_the_share_together():
    model = llama(300)
    with torch.no_grad():
        probabilities = (model(torch.tensor([[5, 6]])).logits[0, -1] / 0.7).softmax(0)
    order = probabilities.argsort(descending=True)
    count = int((probabilities[order].cumsum(0) < 0.6).sum()) + 1
    options = Sampling(1, temperature=0.7, top_p=0.6)
    drawn = torch.tensor([ids for ids, _ in TransformersSampler(model).write([[5, 6]] * 4000, set(), options, 0)])[:, 0]
    often = torch.bincount(drawn, minlength=300) / len(drawn)
    expected = torch.zeros(300)
    expected[order[:count]] = probabilities[order[:count]] / probabilities[order[:count]].sum()
    assert set(drawn.tolist()) <= set(order[:count].tolist())
    torch.testing.assert_close(often, expected, rtol=0, atol=0.04)


def test_a_model_with_a_template_writes_conversations():
    for family in TEMPLATES:
        tokenizer = chat_tokenizer(family)
        model = llama(len(tokenizer))
        records = Writer(EndingSampler(model), tokenizer, family, Sampling(10), 512).write(8, 0)
        assert len(records) > 2, family
        for record in records:
            assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
            assert all(message["content"].strip() for message in record["messages"])


class FollowsTemplate:
    """A sampler that knows a question and its answer, and writes what a template writes with and after them."""

    stops = ()
    question, reply = "What is 2 + 2?", "It is 4."

    def __init__(self, tokenizer, added=""):
        self.tokenizer, self.added = tokenizer, added

    def write(self, prompts, stops, options, seed):
        user, assistant = ChatTemplate(self.tokenizer, "t").write([Turn("user", "Q"), Turn("assistant", "A")])
        answer = self.reply + assistant.end
        text = self.question + user.end + assistant.header + answer if seed % 2 == 0 else answer
        ids = self.tokenizer(self.added + text, add_special_tokens=False)["input_ids"]
        ids = [*ids, self.tokenizer.eos_token_id]
        end = next(number for number, token in enumerate(ids, 1) if token in stops or number == options.max_new_tokens)
        self.longest = max(map(len, prompts))
        return [Written(ids[:end], [-1.0] * end)] * len(prompts)


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_a_question_ends_where_a_template_begins_the_answer(family):
    tokenizer = copy.deepcopy(chat_tokenizer(family))
    if "SentencePiece" in KINDS[family]:
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.backend_tokenizer.decoder = decoders.Sequence(parts)
    sampler = FollowsTemplate(tokenizer)
    expected = [{"role": "user", "content": sampler.question}, {"role": "assistant", "content": sampler.reply}]
    writer = Writer(sampler, tokenizer, family, Sampling(40), None)
    assert writer.write(2, 0) == [{"messages": expected}] * 2
    question = len(tokenizer(sampler.question + "[/INST]", add_special_tokens=False)["input_ids"]) + 4
    assert Writer(sampler, tokenizer, family, Sampling(question), None).write(2, 0) == [{"messages": expected}] * 2
    long = 40 + sampler.longest
    assert Writer(sampler, tokenizer, family, Sampling(40), long).write(2, 0) == [{"messages": expected}] * 2
    assert Writer(sampler, tokenizer, family, Sampling(40), long - 1).write(2, 0) == []  # no room for an answer
    with pytest.raises(UsageError, match="--max-new-tokens 40: t reads 40 tokens at most"):
        Writer(sampler, tokenizer, "t", Sampling(40), 40)


def test_a_message_with_special_tokens_inside_is_left_out():
    tokenizer = chat_tokenizer("ChatML")
    assert Writer(FollowsTemplate(tokenizer, "<|im_start|>"), tokenizer, "t", Sampling(40), None).write(2, 0) == []


def test_a_conversation_with_a_message_that_does_not_end_is_left_out():
    tokenizer = chat_tokenizer("ChatML")

    class EndingAtTimes(EndingSampler):
        def write(self, prompts, stops, options, seed):
            written = super().write(prompts, stops, options, seed)
            return [one if number % 2 else Written(one.ids[:-1], one.logprobs) for number, one in enumerate(written)]

    records = Writer(EndingAtTimes(llama(len(tokenizer))), tokenizer, "a model", Sampling(10), None).write(8, 0)
    assert 0 < len(records) <= 2  # of 8 messages 4 end, and of their answers 2


def test_a_model_without_one_writes_texts():
    tokenizer = TOTAL["byte-level BPE, 300"]()
    records = Writer(TransformersSampler(llama(len(tokenizer))), tokenizer, "a model", Sampling(10), None).write(6, 0)
    assert len(records) > 2
    assert all(set(record) == {"text"} and record["text"] for record in records)
