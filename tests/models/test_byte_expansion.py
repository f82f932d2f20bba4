"""Byte-level students that also read the longest token of their teacher that ends at each byte."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ctd_core.config.models import Adapters, ByteExpansion, Student, Teacher
from ctd_core.errors import UsageError
from ctd_core.models.adapters import add_adapters
from ctd_core.models.building import build_student
from ctd_core.models.byte_expansion import CODE
from ctd_core.models.byte_students import with_byte_expansion
from ctd_core.models.loading import load_model
from ctd_core.models.transfer import transfer_model
from ctd_core.text.token_bytes import ids_by_bytes
from tests.support.models import gpt2, llama
from tests.support.shard_sets import prepared
from tests.support.tokenizers import TEXTS

TEACHERS = {"byte-level BPE, 600": 600, "SentencePiece BPE with a leading space": 400}
READER = """
import json, sys, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([json.loads(sys.argv[2])])
written = model.generate(ids, max_new_tokens=8, do_sample=False)
print(json.dumps([model(ids).logits[0, -1].tolist(), written[0].tolist()]))
"""


def student_of(old="byte-level BPE, 600", new="bytes", max_bytes=16, teacher=None):
    student_tokenizer, teacher_tokenizer = prepared(new), prepared(old)
    teacher = teacher or llama(len(teacher_tokenizer.encoder.token_bytes.by_id))
    plain = transfer_model(teacher, student_tokenizer, teacher_tokenizer, untie=True)
    return with_byte_expansion(plain, teacher, student_tokenizer, teacher_tokenizer, max_bytes), teacher


STUDENTS = {old: student_of(old)[0] for old in TEACHERS}
TOKENS = {old: ids_by_bytes(prepared(old).encoder.token_bytes) for old in TEACHERS}
SCRIPTS = st.text(max_size=30).map(str.encode) | st.sampled_from(TEXTS).map(str.encode) | st.binary(max_size=60)


def longest_token(tokens, spelled, max_bytes, none):
    ends = (spelled[-length:] for length in range(min(max_bytes, len(spelled)), 0, -1))
    return next((tokens[end] for end in ends if end in tokens), none)


@pytest.mark.parametrize("old", TEACHERS)
@settings(max_examples=200, deadline=None)
@given(parts=st.lists(SCRIPTS, min_size=1, max_size=3), max_bytes=st.integers(1, 16))
def test_the_longest_token_that_ends_at_each_byte_and_none_across_special_tokens(old, parts, max_bytes):
    embedding = STUDENTS[old].get_input_embeddings()
    tokenizer = prepared("bytes").encoder
    end = tokenizer.tokenizer.eos_token_id
    ids, expected, none = [end], [len(embedding.table) - 1], len(embedding.table) - 1
    for part in parts:
        ids += [*part, end]  # the id of a byte is the byte
        expected += [longest_token(TOKENS[old], part[:n], max_bytes, none) for n in range(1, len(part) + 1)] + [none]
    embedding.max_bytes = max_bytes
    try:
        assert embedding.expansion(torch.tensor([ids]))[0].tolist() == expected
    finally:
        embedding.max_bytes = 16


def test_a_longer_token_is_not_found_where_the_trie_was_made_for_shorter_ones():
    student, _ = student_of(max_bytes=2)
    embedding = student.get_input_embeddings()
    ids = torch.tensor([list(b"the theatre")])
    known = {token for raw, token in TOKENS["byte-level BPE, 600"].items() if len(raw) <= 2}
    assert set(embedding.expansion(ids)[0].tolist()) <= known


def test_at_the_start_it_reads_what_the_teacher_reads_where_a_token_ends():
    student, teacher = student_of()
    tokens = TOKENS["byte-level BPE, 600"]
    token = next(raw for raw in sorted(tokens, key=len, reverse=True) if len(raw) <= 16)
    read = student.get_input_embeddings()(torch.tensor([list(token)]))[0, -1]
    assert torch.equal(read, teacher.get_input_embeddings().weight[tokens[token]])


@pytest.mark.parametrize("make", [llama, gpt2])
def test_generation_with_a_cache_is_generation_without(make):
    student, _ = student_of(teacher=make(600))
    with torch.no_grad():
        student.get_input_embeddings().weight.normal_(generator=torch.Generator().manual_seed(0))
    pad = 256
    prompts = [list(text.encode())[:20] for text in TEXTS[:4]]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    written = [
        student.generate(
            ids, attention_mask=mask, max_new_tokens=40, do_sample=False, use_cache=cached, pad_token_id=pad
        )
        for cached in (True, False)
    ]
    assert torch.equal(*written)
    assert len({tuple(row) for row in written[0].tolist()}) > 1


def test_a_cache_without_the_bytes_before_is_refused():
    student, _ = student_of()
    ids = torch.tensor([list(b"the men")])
    cache = student(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"inputs_embeds: model.get_input_embeddings\(\)\(all_ids\)"):
        student(ids[:, -1:], past_key_values=cache)
    with pytest.raises(ValueError, match="inputs_embeds"):
        student(ids[:, -1:], None, None, cache)
    with pytest.raises(ValueError, match="no prefill_chunk_size"):
        student.generate(ids, max_new_tokens=4, prefill_chunk_size=3)


def mixtral(vocabulary):
    """A teacher whose experts lie in its files otherwise than in the model."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def falcon_h1(vocabulary):
    """A teacher with a fixed buffer that lies in no file."""
    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return FalconH1ForCausalLM(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("make", [llama, mixtral, falcon_h1])
def test_saved_and_loaded_here_without_its_code_and_elsewhere_with_it(make, tmp_path):
    student, _ = student_of(teacher=make(600))
    student.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in student.state_dict().items())
    ids = list("Grüße from".encode())
    with torch.no_grad():
        logits = student(torch.tensor([ids])).logits[0, -1]
        assert torch.equal(again(torch.tensor([ids])).logits[0, -1], logits)
    answer = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path), json.dumps(ids)], capture_output=True, text=True, check=True
    )
    there, written = json.loads(answer.stdout)
    assert there == logits.tolist()
    assert written == student.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0].tolist()
    (tmp_path / f"{CODE}.py").write_text("raise SystemExit('code from storage ran')")
    load_model(str(tmp_path))


def test_a_base_that_is_no_model_class_is_refused(tmp_path):
    student, _ = student_of()
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"expansion_base": "pipeline"}))
    with pytest.raises(UsageError, match="pipeline is no model class of transformers"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("adapters", [None, Adapters(rank=2)])
def test_the_teachers_embeddings_stay_and_the_others_learn(adapters, tmp_path):
    student_of()[0].save_pretrained(tmp_path)
    student = load_model(str(tmp_path))  # as a training does
    if adapters is not None:
        add_adapters(student, adapters, 0)
    embedding = student.get_input_embeddings()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    student(torch.tensor([list(b"the men")])).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    assert torch.equal(embedding.table, before["model.embed_tokens.table"])
    assert not torch.equal(embedding.weight, before["model.embed_tokens.weight"])


def test_a_tokenizer_of_longer_tokens_is_refused():
    with pytest.raises(UsageError, match="for tokenizers of single bytes, and byte-level BPE, 300 has"):
        student_of(new="byte-level BPE, 300")


def test_an_embedding_of_another_kind_is_refused():
    class Scaled(nn.Embedding):
        pass

    teacher = llama(600)
    own = teacher.get_input_embeddings()
    scaled = Scaled(*own.weight.shape)
    scaled.weight = own.weight
    teacher.set_input_embeddings(scaled)
    with pytest.raises(UsageError, match="embeddings of its own kind \\(Scaled\\)"):
        with_byte_expansion(llama(257), teacher, prepared("bytes"), prepared("byte-level BPE, 600"), 16)


def test_a_model_with_code_of_its_own_is_refused():
    class Own(LlamaForCausalLM):
        pass

    with pytest.raises(UsageError, match="Own is no model class of transformers"):
        student_of(teacher=Own(llama(600).config))


def test_with_more_or_fewer_rows_it_reads_the_same_bytes(tmp_path):
    student, _ = student_of()
    ids = torch.tensor([list(b"the theatre")])
    with torch.no_grad():
        logits = student(ids).logits
        student.resize_token_embeddings(264)
        student.save_pretrained(tmp_path)
        again = load_model(str(tmp_path))
        torch.testing.assert_close(again(ids).logits[..., :257], logits)
        again(torch.tensor([[263, 262]]))
        assert len(again.resize_token_embeddings(257).byte_of) == 257
        torch.testing.assert_close(again(ids).logits, logits)


def test_under_another_tokenizer_a_student_of_bytes_is_no_teacher():
    student, _ = student_of()
    same = transfer_model(student, prepared("bytes"), prepared("bytes"))
    ids = torch.tensor([list(b"the theatre")])
    with torch.no_grad():
        assert torch.equal(same(ids).logits, student(ids).logits)
    for other, multiple in ((prepared("byte-level BPE, 300"), 1), (prepared("bytes"), 64)):
        with pytest.raises(UsageError, match="ByteExpandedForCausalLM has student"):
            transfer_model(student, other, prepared("bytes"), pad_to_multiple_of=multiple)


def test_a_model_that_keeps_states_alone_is_refused():
    sizes = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8}
    teacher = MambaForCausalLM(MambaConfig(**sizes))
    with pytest.raises(UsageError, match="MambaForCausalLM keeps states alone"):
        student_of(teacher=teacher)


def test_a_student_of_bytes_has_an_output_matrix_of_its_own(tmp_path):
    teacher_tokenizer = prepared("byte-level BPE, 600")
    llama(600).save_pretrained(tmp_path)
    options = Student.model_validate({"tokenizer": {"kind": "bytes"}})
    for expansion in (None, ByteExpansion()):
        chosen = options.model_copy(update={"byte_expansion": expansion})
        student = build_student(chosen, Teacher(model=str(tmp_path)), prepared("bytes"), teacher_tokenizer)
        assert student.get_output_embeddings().weight is not student.get_input_embeddings().weight
