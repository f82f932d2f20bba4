"""Workers that hold copies of the student, or shares of it: the same losses, and one format of checkpoints."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import ValidationError
from torch.distributed.tensor import DTensor

from ctd_core.config.objectives import PUBLISHED_ALM, Dskd, Gold, HiddenStates, MinEd, PKl, Sft, Uld
from ctd_core.config.training import Train
from ctd_core.evaluation.likelihoods import measure_likelihoods
from ctd_core.evaluation.metrics import metrics_of
from ctd_core.models.byte_students import with_byte_expansion
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.online_teacher import OnlineTeacher
from ctd_core.shards.reading import ShardSet
from ctd_core.training import learner
from ctd_core.training.checkpoint import load_weights
from ctd_core.training.loop import Hooks, train
from ctd_core.training.workers import ALONE, Worker, distribute
from pipelines.artifacts.checkpoints import checkpoint_writer
from tests.support.models import llama, logprobs_of
from tests.support.shard_sets import prepared, texts, write_set
from tests.training.test_splits import free_port

pytestmark = pytest.mark.slow
STAGES = [{"steps": 2, "freeze": ["layers"], "learning_rate": 4e-3}, {"steps": 2, "freeze": ["embed"]}]
STUDENT, TEACHER = "byte-level BPE, 300", "byte-level BPE, 600"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    location = tmp_path_factory.mktemp("shards")
    teacher = prepared(TEACHER)
    model = logprobs_of(llama(600, seed=1), teacher.encoder.token_bytes.begins_pretoken)
    write_set(location, prepared(STUDENT), teacher, texts(40), teacher_model=model)
    return location


def new_student(tied=True, dtype=torch.float64):  # wide, so that the order of sums does not show
    model = llama(300, tied=tied, dtype=dtype)
    model.model.for_images = torch.nn.Parameter(torch.ones(3, dtype=dtype))  # no text uses it
    return logprobs_of(model, prepared(STUDENT).encoder.token_bytes.begins_pretoken)


def options(workers, strategy, **changes):
    return Train(
        steps=8, batch_tokens=300, gradient_accumulation=2, learning_rate=1e-3, checkpoint_every=4, evaluate_every=4,
        objectives=[PUBLISHED_ALM, Sft(kind="sft", weight=0.5)], num_workers=workers, strategy=strategy, **changes,
    )  # fmt: skip


def trained(worker, options, location, out, start=None, student=None):
    """Train, with metrics in `out`/metrics.json and checkpoints below `out`; the student."""
    seen, shards = [], ShardSet(location, verify=False)
    student = student or new_student()

    def evaluate(model):
        return metrics_of(measure_likelihoods(model, shards, 300))

    hooks = Hooks(seen.append, checkpoint_writer(str(out), worker), evaluate)
    online = OnlineTeacher(
        32, HuggingFaceModel(llama(600, seed=1, dtype=torch.float64)), prepared(STUDENT), prepared(TEACHER), None
    )
    train(options, student, shards, hooks, start, worker, online)
    if worker.rank == 0:
        (out / "metrics.json").write_text(json.dumps(seen))
    return student


def byte_student():
    """A student of bytes that reads its teacher's tokens too."""
    student, teacher = llama(257, tied=False, dtype=torch.float64), llama(600, dtype=torch.float64)
    model = with_byte_expansion(student, teacher, prepared("bytes"), prepared(TEACHER), 16)
    return logprobs_of(model, prepared("bytes").encoder.token_bytes.begins_pretoken)


def processes(rank, world, port, trainings, location, folder, make=new_student):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    for name, (chosen, start) in trainings.items():
        student = trained(Worker(rank, world), chosen, location, folder / name, start and folder / start, make())
        if chosen.strategy == "fsdp":
            assert all(isinstance(parameter, DTensor) for parameter in student.parameters())
            held = sum(parameter.to_local().numel() for parameter in student.parameters())
            assert held < 0.6 * sum(parameter.numel() for parameter in student.parameters())
    narrow(rank, folder / "narrow.pt")
    dist.barrier()
    dist.destroy_process_group()


def narrow(rank, out):
    """Types and the sum of log-probabilities where layers are gathered in bfloat16."""
    student = new_student(tied=False, dtype=torch.float32)
    distribute(student, options(2, "fsdp"), torch.device("cpu"), torch.bfloat16)
    token, hidden = answered(student)
    token.sum().backward()
    head = student.model.get_output_embeddings().weight
    if rank == 0:
        torch.save((hidden.dtype, token.dtype, head.dtype, head.grad.dtype, token.sum().item()), out)


def answered(student):
    ids, rows = torch.arange(40)[None], torch.arange(39)
    token, _, hidden = student(ids, rows, rows, ids[0, 1:], rows[:0])
    return token, hidden


ONLINE = [
    HiddenStates(kind="hidden_states"), Uld(kind="uld"), MinEd(kind="min_ed"), Gold(kind="gold"), PKl(kind="p_kl"),
    Dskd(kind="dskd"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(shards, tmp_path_factory):
    """Trainings by name, by two processes that hold copies or shares, and by this one alone."""
    folder = tmp_path_factory.mktemp("trainings")
    with_online = {"objectives": ONLINE}
    together = {
        "ddp": (options(2, "ddp"), None),
        "fsdp": (options(2, "fsdp"), None),
        "fsdp, resumed": (options(2, "fsdp"), "fsdp/step_00000004"),
        "ddp, resumed": (options(2, "ddp"), "fsdp/step_00000004"),
        "ddp, in stages": (options(2, "ddp", stages=STAGES), None),
        "ddp, in stages, resumed": (options(2, "ddp", stages=STAGES), "ddp, in stages/step_00000004"),
        "ddp, online": (options(2, "ddp").model_copy(update=with_online), None),
        "fsdp, online": (options(2, "fsdp", activation_checkpointing=True).model_copy(update=with_online), None),
    }
    alone = {
        "alone": (options(0, "ddp"), None),
        "alone, resumed": (options(0, "ddp"), "fsdp/step_00000004"),
        "alone, in stages": (options(0, "ddp", stages=STAGES), None),
        "alone, online": (options(0, "ddp").model_copy(update=with_online), None),
    }
    for name in together | alone:
        (folder / name).mkdir()
    mp.spawn(processes, (2, free_port(), together, shards, folder), nprocs=2)
    for name, (chosen, start) in alone.items():
        trained(ALONE, chosen, shards, folder / name, start and folder / start)
    return folder


def test_workers_in_stages_have_the_metrics_of_one_process(folder):
    alone = metrics(folder, "alone, in stages")
    assert alone[3]["learning_rate"] != metrics(folder, "alone")[3]["learning_rate"]
    assert_close(alone, metrics(folder, "ddp, in stages"))
    assert_close(alone[4:], metrics(folder, "ddp, in stages, resumed"))


def test_a_student_with_byte_expansion_has_the_same_losses_on_every_kind_of_workers_and_resumed(tmp_path):
    teacher = prepared(TEACHER)
    model = logprobs_of(llama(600, seed=1), teacher.encoder.token_bytes.begins_pretoken)
    write_set(tmp_path / "shards", prepared("bytes"), teacher, texts(40), teacher_model=model)
    together = {"ddp": (options(2, "ddp"), None), "fsdp": (options(2, "fsdp"), None)}
    together["ddp, resumed"] = (options(2, "ddp"), "fsdp/step_00000004")
    for name in ("alone", "alone, resumed", *together):
        (tmp_path / name).mkdir()
    mp.spawn(processes, (2, free_port(), together, tmp_path / "shards", tmp_path, byte_student), nprocs=2)
    whole, resumed = (
        trained(ALONE, options(0, "ddp"), tmp_path / "shards", tmp_path / name, start, byte_student())
        for name, start in (("alone", None), ("alone, resumed", tmp_path / "alone/step_00000004"))
    )
    assert torch.equal(whole.model.lm_head.weight, resumed.model.lm_head.weight)
    assert metrics(tmp_path, "alone, resumed") == metrics(tmp_path, "alone")[4:]
    for name in ("ddp", "fsdp"):
        assert_close(metrics(tmp_path, "alone"), metrics(tmp_path, name))
    assert_close(metrics(tmp_path, "alone")[4:], metrics(tmp_path, "ddp, resumed"))


def metrics(folder, name):
    return json.loads((folder / name / "metrics.json").read_text())


def assert_close(some, others):
    assert len(some) == len(others) > 0
    for tensor, other in zip(some, others, strict=True):
        assert other == pytest.approx(tensor | {"workers": other["workers"]}, rel=1e-6)


def test_workers_with_shares_have_the_metrics_of_those_with_copies_and_of_one_process(folder):
    alone = metrics(folder, "alone")
    assert {"bits_per_byte", "teacher_distance_bits_per_byte", "loss"} <= set(alone[3])
    assert_close(alone, metrics(folder, "ddp"))
    assert_close(alone, metrics(folder, "fsdp"))


def test_copies_and_shares_with_layers_computed_twice_serve_objectives_with_a_live_teacher(folder):
    for strategy in ("ddp", "fsdp"):
        assert_close(metrics(folder, "alone, online"), metrics(folder, f"{strategy}, online"))


def test_checkpoints_of_shares_are_resumed_exactly_and_by_any_number_of_workers(folder):
    whole = metrics(folder, "fsdp")
    assert len(list((folder / "fsdp" / "step_00000004").glob("*.safetensors"))) == 2  # each worker wrote its own
    assert metrics(folder, "fsdp, resumed") == whole[4:]
    assert_close(whole[4:], metrics(folder, "ddp, resumed"))
    assert_close(whole[4:], metrics(folder, "alone, resumed"))


def test_one_process_reads_the_weights_that_several_wrote(folder):
    students = new_student(), new_student()
    for name, student in zip(("fsdp", "alone"), students, strict=True):
        load_weights(folder / name / "step_00000008", student)
    assert not torch.equal(students[0].model.lm_head.weight, new_student().model.lm_head.weight)
    for parameter, other in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-9)


def test_shares_may_be_gathered_in_bfloat16_and_stay_float32(folder):
    hidden, token, weight, gradient, total = torch.load(folder / "narrow.pt")
    assert (hidden, token, weight, gradient) == (torch.bfloat16, *[torch.float32] * 3)
    exact = answered(new_student(tied=False, dtype=torch.float32))[0].sum().item()
    assert total == pytest.approx(exact, rel=0.02)
    assert total != pytest.approx(exact, rel=1e-6)


def test_shares_are_refused_where_they_cannot_be():
    with pytest.raises(ValidationError, match="num_workers, which is 0"):
        options(0, "fsdp")
    with pytest.raises(ValidationError, match="gradient_magnitude is not supported with strategy"):
        options(2, "fsdp", weighting="gradient_magnitude")


def test_every_number_of_workers_has_to_share_a_step_evenly():
    assert options(2, "ddp", min_workers=1).min_workers == 1
    with pytest.raises(ValidationError, match=r"gradient_accumulation is 4, and a step may have 3 workers"):
        Train(steps=1, gradient_accumulation=4, num_workers=4, min_workers=2, checkpoint_every=1)
    with pytest.raises(ValidationError, match="min_workers is 3, and num_workers, the most, 2"):
        options(2, "ddp", min_workers=3)


def learner_of_a_mixed_pair(rank, port, out):
    """The type that one of two workers calculates in, of which the second alone is fast in bfloat16."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    learner.has_fast_bfloat16 = lambda device: rank == 1
    found = learner.Learner(new_student(), Train(steps=1, autocast="fastest"), torch.device("cpu"), 0).autocast
    (out / f"{rank}.txt").write_text(str(found))
    dist.destroy_process_group()


def test_workers_of_unlike_machines_calculate_in_one_type(tmp_path):
    mp.spawn(learner_of_a_mixed_pair, (free_port(), tmp_path), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["None"] * 2
