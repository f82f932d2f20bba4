"""`python -m tests.benchmarks.starts TEACHER TOKENIZER OUTPUT`: ways to begin with the embeddings of tokens that the
teacher lacks, of which only the first is part of the package, and how far each student is from its teacher before any
training. The students are put into OUTPUT, for `ctd evaluate --model` with tasks.

mean: the mean of the old tokens that spell it, as `ctd` has it.
contextual: in a corpus, the teacher's state at the end of those old tokens, a few layers up, taken back to an embedding
by a ridge regression that is fitted where both sides have the same token; the mean over the corpus, in which the mean
above counts once. Compare arXiv 2510.21954.
omp: a sparse combination of the embeddings of shared tokens, found by orthogonal matching pursuit between vectors of
the student's tokens (arXiv 2506.06607), here those of a corpus: its co-occurrences, as positive pointwise mutual
information, by singular values. (The paper takes those of a model that has the student's tokenizer.)
output: an output matrix of its own, trained alone by `prefix_kl` on the corpus.
"""

import argparse
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

import ctd_core as ctd
from ctd_core.align.vocabulary import exact_map
from ctd_core.config.text import GeneralText, StdlibDocs, WrittenConversations
from ctd_core.models.building import logprob_model
from ctd_core.models.language_model import HuggingFaceModel
from ctd_core.models.loading import load_model
from ctd_core.models.transfer import transfer_model
from ctd_core.text.corpora import read_documents

WINDOW = 4  # tokens to either side that count as a token's company
DIMENSIONS, ATOMS = 256, 64
LEAST_COUNT = 8  # of a shared token in the corpus, to be part of a combination


def texts_of(corpus, limit):
    """The texts of a corpus up to `limit` characters."""
    found, size = [], 0
    for document in read_documents(corpus, 1_000_000):
        if size >= limit:
            break
        found.append(document.text)
        size += len(document.text)
    return found


class ReachedError(Exception):
    """The states are there: no further layer is asked."""


def states_at(model, depth, rows):
    """For each row the teacher's states [T, H] after `depth` layers."""
    seen = []

    def keep(module, inputs, output):
        states = output[0] if isinstance(output, tuple) else output
        seen.append(states.view(-1, states.shape[-1]))
        raise ReachedError

    hook = HuggingFaceModel(model).layers[depth - 1].register_forward_hook(keep)
    for ids in rows:
        with suppress(ReachedError):
            model.base_model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    hook.remove()
    return seen


@torch.no_grad()
def contextual(pair, embeddings, depth):
    """`embeddings` [V, H] with those of tokens without a twin that are a whole chunk somewhere in the corpus."""
    old = pair.teacher.get_input_embeddings().weight
    rows = np.arange(len(pair.rows))
    names = ("student_ids", "teacher_ids", "student_chunk_ends", "teacher_chunk_ends")
    columns = [pair.rows.read(name, rows) for name in names]
    found = {"state": [], "token": [], "twin": []}
    for student_ids, teacher_ids, ends, teacher_ends, states in zip(
        *columns, states_at(pair.teacher, depth, columns[1]), strict=True
    ):
        whole = (np.diff(ends, prepend=0) == 1) & (np.diff(teacher_ends, prepend=0) > 0)
        tokens, last = student_ids[ends[whole] - 1], teacher_ends[whole] - 1
        same = pair.twins[tokens] == np.where(np.diff(teacher_ends, prepend=0)[whole] == 1, teacher_ids[last], -2)
        wanted = same | pair.is_new[tokens]
        found["state"].append(states[torch.from_numpy(last[wanted].astype(np.int64))])
        found["token"].append(tokens[wanted])
        found["twin"].append(np.where(same, pair.twins[tokens], -1)[wanted])
    states = torch.cat(found["state"]).double()
    tokens, twins = (torch.from_numpy(np.concatenate(found[name]).astype(np.int64)) for name in ("token", "twin"))
    known = twins >= 0
    inputs, outputs = states[known], old[twins[known]].double()
    means = inputs.mean(0), outputs.mean(0)
    gram = (inputs - means[0]).T @ (inputs - means[0])
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    back = torch.linalg.solve(gram + ridge, (inputs - means[0]).T @ (outputs - means[1]))
    new, tokens = (states[~known] - means[0]) @ back + means[1], tokens[~known]
    counts = torch.bincount(tokens, minlength=len(embeddings))[:, None]
    sums = torch.zeros(embeddings.shape, dtype=new.dtype).index_add_(0, tokens, new)
    return torch.where(counts > 0, (sums + embeddings) / (counts + 1), embeddings).float(), int((counts > 0).sum())


def company(pair):
    """Vectors [V, D] of the student's tokens by the tokens around them in the corpus, and how often each occurs [V]."""
    rows = pair.rows.read("student_ids", np.arange(len(pair.rows)))
    size = len(pair.twins)
    pairs = []
    for ids in rows:
        for apart in range(1, WINDOW + 1):
            pairs += [(ids[:-apart], ids[apart:] + size), (ids[apart:], ids[:-apart])]
    token, beside = (np.concatenate(part) for part in zip(*pairs, strict=True))
    at = torch.from_numpy(np.stack([token, beside]).astype(np.int64))
    counts = torch.sparse_coo_tensor(at, torch.ones(len(token)), (size, 2 * size)).coalesce()
    of_token, of_other = torch.bincount(at[0], minlength=size), torch.bincount(at[1], minlength=2 * size)
    row, column = counts.indices()
    information = (counts.values() * len(token) / (of_token[row] * of_other[column])).log().clamp(min=0)
    positive = torch.sparse_coo_tensor(counts.indices(), information, counts.shape)
    torch.manual_seed(0)
    left, values, _ = torch.svd_lowrank(positive, DIMENSIONS, niter=4)
    return left * values.sqrt(), np.bincount(np.concatenate(rows), minlength=size)


@torch.no_grad()
def omp(embeddings, vectors, anchors, wanted):
    """`embeddings` [V, H] with those of the `wanted` tokens, as combinations of those of the `anchors`."""
    if not len(wanted):
        return embeddings, 0
    dictionary, targets = vectors[anchors], vectors[wanted]
    unit = nn.functional.normalize(dictionary)
    chosen, rest = torch.zeros(len(wanted), 0, dtype=torch.int64), targets
    for _ in range(min(ATOMS, len(anchors))):
        likeness = (rest @ unit.T).abs().scatter(1, chosen, -1.0)
        chosen = torch.cat([chosen, likeness.argmax(1, keepdim=True)], 1)
        atoms = dictionary[chosen]
        gram = atoms @ atoms.mT
        ridge = 1e-4 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(gram.shape[1])
        weights = torch.linalg.solve(gram + ridge, atoms @ targets[:, :, None])
        rest = targets - (atoms.mT @ weights)[:, :, 0]
    new = embeddings.clone()
    new[wanted] = (embeddings[anchors][chosen] * weights).sum(1)
    return new, len(wanted)


class Pair:
    """A teacher, a tokenizer, and texts under both: to find embeddings by, and to measure on.

    twins: [V], for each student token the teacher's of the same bytes, −1 where there is none. is_new: [V], whether it
    is text without a twin.
    """

    def __init__(self, teacher: str, tokenizer: str, corpus_size: int) -> None:
        self.name = teacher
        self.teacher_tokenizer = ctd.prepare_tokenizer(teacher)
        self.student_tokenizer = ctd.prepare_tokenizer(tokenizer)
        self.teacher = load_model(teacher)
        self.is_bytes = tokenizer == "bytes"
        self.twins = exact_map(
            self.teacher_tokenizer.encoder.token_bytes, self.student_tokenizer.encoder.token_bytes
        ).astype(np.int64)
        token_bytes = self.student_tokenizer.encoder.token_bytes
        self.is_new = (self.twins < 0) & (token_bytes.lengths_bytes > 0) & ~token_bytes.is_special
        corpora = WrittenConversations(kind="conversations"), StdlibDocs(kind="stdlib-docs")
        self.rows = self._rows([text for corpus in corpora for text in texts_of(corpus, corpus_size // 2)])
        self.general = self.scored(self._rows(texts_of(GeneralText(kind="general"), 10**9)), prefix_k=0)

    def _rows(self, texts):
        return ctd.make_rows(self.student_tokenizer, self.teacher_tokenizer, texts, 1024 if self.is_bytes else 256)

    def scored(self, rows, prefix_k):
        """`rows` with the teacher's targets."""
        scorer = ctd.load_teacher(self.name, self.teacher_tokenizer, "fastest" if prefix_k else "float32")
        return ctd.score(scorer, rows, self.student_tokenizer, self.teacher_tokenizer, prefix_k, 2048)

    def student(self, untie=False):
        """A student with the means of old embeddings."""
        model = transfer_model(self.teacher, self.student_tokenizer, self.teacher_tokenizer, untie or self.is_bytes)
        return logprob_model(model, self.student_tokenizer)

    def with_embeddings(self, find: Callable):
        """A student with embeddings [V, H] that `find` makes of the means, and of how many tokens they are new."""
        student = self.student()
        weight = student.model.get_input_embeddings().weight
        new, count = find(weight.detach().clone())
        weight.data.copy_(new)
        return student, count

    def with_output(self, steps):
        """A student with an output matrix that has learned alone."""
        student = self.student(untie=True)
        freeze = [name for name, _ in student.model.named_parameters() if not name.startswith("lm_head")]
        rows = self.scored(self.rows, prefix_k=8)
        ctd.train(student, rows, steps, freeze=freeze, learning_rate=1e-3, batch_tokens=1024)
        return student, len(self.twins)


def main() -> None:
    """Make each student, measure it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("tokenizer")
    parser.add_argument("output", type=Path)
    parser.add_argument("--corpus-size", type=int, default=200_000, help="characters")
    parser.add_argument("--steps", type=int, default=48, help="of the output matrix")
    parser.add_argument("--only", nargs="+")
    given = parser.parse_args()
    pair = Pair(given.teacher, given.tokenizer, given.corpus_size)
    print(f"{(pair.twins >= 0).sum()} of {len(pair.twins)} tokens have a twin")

    def by_company(embeddings):
        vectors, counts = company(pair)
        anchors, wanted = (pair.twins >= 0) & (counts >= LEAST_COUNT), pair.is_new & (counts > 0)
        return omp(embeddings, vectors, np.flatnonzero(anchors), np.flatnonzero(wanted))

    ways = {
        "mean": lambda: (pair.student(), 0),
        **{
            f"contextual, {depth} layers": lambda depth=depth: pair.with_embeddings(
                lambda embeddings: contextual(pair, embeddings, depth)
            )
            for depth in (1, 3, 6)
        },
        "omp": lambda: pair.with_embeddings(by_company),
        "output": lambda: pair.with_output(given.steps),
    }
    for way, make in ways.items():
        if given.only and not any(way.startswith(name) for name in given.only):
            continue
        start = time.perf_counter()
        student, new = make()
        seconds = time.perf_counter() - start
        figures = ctd.measure(student, pair.general)
        print(
            f"| {way} | {figures['bits_per_byte']:.3f} | {figures['teacher_distance_bits_per_byte']:.3f} "
            f"| {new} | {seconds:.0f} |",
            flush=True,
        )
        ctd.export(student, pair.student_tokenizer, given.output / way.replace(", ", "-").replace(" ", "-"))
    print(f"peak memory, with measuring: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")


if __name__ == "__main__":
    main()
