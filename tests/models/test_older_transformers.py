"""An exported student in transformers 4.56, the oldest that is meant to load it."""

import json
import subprocess
import sysconfig
import venv

import pytest
import torch

from ctd_core.models.byte_students import with_byte_expansion
from ctd_core.models.export import export_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.transfer import transfer_model
from ctd_core.text.prepared_tokenizer import prepare_tokenizer
from ctd_core.text.tokenizers import bytes_tokenizer, train_tokenizer
from tests.support.models import llama
from tests.support.shard_sets import prepared
from tests.support.tokenizers import TEXTS, TOTAL

READER = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

texts = json.loads(sys.argv[2])
loaded = (kind.from_pretrained(sys.argv[1], trust_remote_code=True) for kind in (AutoTokenizer, AutoModelForCausalLM))
tokenizer, model = loaded
ids = [tokenizer(text)["input_ids"] for text in texts]
with torch.no_grad():
    logits = model(torch.tensor([ids[0]])).logits[0, -1].tolist()
print(json.dumps([transformers.__version__, ids, logits]))
"""


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    """A Python with transformers 4.56, and torch as it is here."""
    folder = tmp_path_factory.mktemp("older")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "transformers==4.56.2"], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "zz_torch.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer", "is_expanded"),
    [
        (bytes_tokenizer, False),
        (bytes_tokenizer, True),
        (lambda: train_tokenizer(TEXTS, 400), False),
        (TOTAL["SentencePiece BPE with a leading space"], False),
    ],
    ids=["bytes", "bytes, expanded", "trained", "SentencePiece"],
)
def test_its_ids_and_logits_are_the_same_there(tokenizer, is_expanded, older_python, tmp_path):
    tokenizer = tokenizer()
    tokenizers = prepare_tokenizer(tokenizer, "the student's", None, None), prepared("byte-level BPE, 600")
    teacher = llama(600)
    student = transfer_model(teacher, *tokenizers, untie=is_expanded)
    if is_expanded:
        student = with_byte_expansion(student, teacher, *tokenizers, 16)
    export_model(HuggingFaceModel(student), tokenizer, "", tmp_path)
    texts = ["it's 2026 here", "a naïve  café\n\t12", " the"]
    done = subprocess.run(
        [older_python, "-c", READER, str(tmp_path), json.dumps(texts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    version, ids, logits = json.loads(done.stdout.splitlines()[-1])
    assert version == "4.56.2"
    assert ids == [tokenizer(text)["input_ids"] for text in texts]
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), student(torch.tensor([ids[0]])).logits[0, -1])
