"""Low-rank adapters, and a student that is its own teacher without them."""

from functools import partial

import numpy as np
import pytest
import torch

from ctd_core.config.models import Adapters
from ctd_core.config.objectives import HiddenStates, Uld
from ctd_core.config.training import Train
from ctd_core.errors import UsageError
from ctd_core.models.adapters import add_adapters, merge_adapters
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher, as_own_teacher
from ctd_core.models.transfer import transfer_model
from ctd_core.objectives.registry import make_objective
from ctd_core.shards.batches import collate
from ctd_core.shards.reading import ShardSet
from ctd_core.training.optimizer import freeze, make_optimizer
from ctd_core.training.step import WeightedObjective, accumulate_gradients
from tests.support.models import gpt2, llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set

STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"
IDS = torch.arange(40).view(2, 20)


def adapted(model):
    """`model` with adapters that do something."""
    add_adapters(model, Adapters(rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def test_adapters_change_nothing_at_first_and_train_with_the_embeddings_alone():
    model, plain = llama(300, tied=False), llama(300, tied=False)
    add_adapters(model, Adapters(rank=4), seed=0)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=0, atol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name in {"model.embed_tokens.weight", "lm_head.weight"} for name in trained)
    assert len(trained) == 2 * 7 * 2 + 2


def test_a_merged_model_is_the_plain_architecture_and_says_the_same(tmp_path):
    model = adapted(llama(300))
    expected = model(IDS).logits
    assert (expected - llama(300)(IDS).logits).abs().max() > 0.1
    merge_adapters(model)
    assert model.state_dict().keys() == llama(300).state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_there_are_an_error():
    with pytest.raises(
        UsageError, match=r"student\.adapters\.targets: 'q_proj' is no linear layer.*c_attn, c_proj, c_fc\."
    ):
        add_adapters(gpt2(300), Adapters(), seed=0)
    with pytest.raises(UsageError, match="'lm_head' is no linear layer inside"):
        add_adapters(llama(300, tied=False), Adapters(targets=["q_proj", "lm_head"]), seed=0)


@pytest.fixture
def pair(tmp_path):
    """A batch, a student with adapters made of the teacher, the teacher in a copy of its own, and as the student."""
    student_tokenizer, teacher_tokenizer = prepared(STUDENT), prepared(TEACHER)
    write_set(tmp_path, student_tokenizer, teacher_tokenizer, texts(8), parts=1)
    teacher = llama(600, seed=1)
    student = adapted(transfer_model(teacher, student_tokenizer, teacher_tokenizer))
    ends = teacher.get_input_embeddings(), teacher.get_output_embeddings()
    own = OnlineTeacher(
        32,
        HuggingFaceModel(student),
        student_tokenizer,
        teacher_tokenizer,
        None,
        partial(as_own_teacher, HuggingFaceModel(student), *ends),
    )
    batch = collate(ShardSet(tmp_path, verify=True), np.arange(4))
    model = logprobs_of(student, student_tokenizer.encoder.token_bytes.begins_pretoken)
    return batch, model, OnlineTeacher(32, HuggingFaceModel(teacher), student_tokenizer, teacher_tokenizer, None), own


def test_a_student_without_its_adapters_says_what_its_teacher_says(pair):
    batch, student, apart, own = pair
    freeze(student.model, ["layers.0.*lora_A"])
    before = student.model(batch.input_ids).logits
    trained = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
    own_outputs, apart_outputs = own.outputs(batch), apart.outputs(batch)
    torch.testing.assert_close(own_outputs.hidden, apart_outputs.hidden, rtol=0, atol=0)
    assert own_outputs.head == apart_outputs.head
    torch.testing.assert_close(student.model(batch.input_ids).logits, before, rtol=0, atol=0)
    assert trained == [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("options", [Uld(kind="uld"), HiddenStates(kind="hidden_states")], ids=lambda batch: batch.kind)
def test_steps_in_one_copy_are_those_in_two(pair, options):
    batch, student, apart, own = pair
    start = {name: value.clone() for name, value in student.model.state_dict().items()}
    losses = []
    for online in (apart, own):
        student.model.load_state_dict(start)
        optimizer = make_optimizer(student, Train(steps=3, learning_rate=1e-2))
        objective = WeightedObjective(1.0, make_objective(options, online))
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(accumulate_gradients(student, [batch], [objective], online).loss)
            optimizer.step()
        now = student.model.state_dict()
        changed = {name for name, value in start.items() if not torch.equal(now[name], value)}
        assert changed == {name for name, parameter in student.model.named_parameters() if parameter.requires_grad} | (
            {"lm_head.weight"}  # tied
        )
    assert losses[:3] == losses[3:]
    assert losses[2] < losses[0]
