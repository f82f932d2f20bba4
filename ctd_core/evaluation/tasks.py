"""Tasks with answers, such as GSM8K, by lm-evaluation-harness (the extra `tasks`), which asks and judges.

https://github.com/EleutherAI/lm-evaluation-harness
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ctd_core.config.evaluation import Tasks
from ctd_core.errors import CtdError, UsageError, first_line
from ctd_core.evaluation.figures import TaskFigures
from ctd_core.text.chat import template_of_one_day

BOOTSTRAP_ROUNDS = 1000  # for standard errors of figures that are no mean


def harness_version() -> str:
    """The version of lm-evaluation-harness; raises UsageError where it is not installed."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise UsageError("evaluate.tasks needs the package lm_eval: pip install 'ctd-ray[tasks]'.") from None


class TaskHarness:
    """The tasks that a run names.

    Args:
        options: which, and how to ask.

    Raises:
        UsageError: the harness is not installed, or knows no task of such a name.
    """

    def __init__(self, options: Tasks) -> None:
        harness_version()
        if options.include_path is not None and not Path(options.include_path).is_dir():
            raise UsageError(f"evaluate.tasks.include_path: there is no directory {options.include_path}.")
        self._options, self._tasks = options, _tasks_of(options)
        known = self._tasks.all_tasks
        if missing := next((name for name in options.names if name not in known), None):
            close = [name for name in known if name.startswith(missing.split("_")[0])][:5]
            hint = f" It has {', '.join(close)}." if close else ""
            raise UsageError(
                f"evaluate.tasks: lm-evaluation-harness has no task {missing!r}.{hint} `lm-eval ls tasks` lists all, "
                "and include_path names a directory with your own."
            )

    def content(self, task: str) -> str:
        """A fingerprint of a task as the harness has it: its options, its questions and its examples.

        Raises CtdError where its data cannot be had.
        """
        digest = hashlib.sha256()
        try:
            for name, part in sorted(self._tasks.load([task])["tasks"].items()):
                documents = chain([part.dump_config()], part.eval_docs, part.fewshot_docs() or [])
                for document in chain([name], documents):
                    digest.update(json.dumps(document, sort_keys=True, default=str).encode() + b"\n")
        except Exception as error:  # of a task's own code, or whatever its data set raises
            raise CtdError(f"the task {task} cannot be read: {type(error).__name__}: {first_line(error)}") from error
        return digest.hexdigest()

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        task: str,
        name: str,
        on_batch: Callable[[float], None] = lambda share: None,
    ) -> TaskFigures:
        """Ask a model the questions of a task.

        Args:
            model: on its device.
            tokenizer: the model's; it writes before a text what has to stand there.
            task: one of those that the options name.
            name: what results and messages call the model.
            on_batch: called with the share of the questions that is done, of those that are known so far.

        Returns:
            The figures with standard errors.

        Raises:
            UsageError: a chat template is asked for, and the tokenizer has none.
            CtdError: the harness fails, as where a data set cannot be had.
        """
        from lm_eval import simple_evaluate  # takes seconds

        options = self._options
        if options.chat_template and not tokenizer.chat_template:
            raise UsageError(f"evaluate.tasks.chat_template: {name} has no chat template. Ask without.")
        try:
            asked = harness_model(model, tokenizer, options.batch_size, on_batch, is_chat=options.chat_template)
            results = simple_evaluate(
                model=asked,
                tasks=[task],
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.chat_template,
                bootstrap_iters=BOOTSTRAP_ROUNDS,
                log_samples=False,
                task_manager=self._tasks,
            )
        except Exception as error:  # of a task's own code, or whatever its data set raises
            raise CtdError(f"the task {task} failed for {name}: {type(error).__name__}: {first_line(error)}") from error
        shots = results.get("n-shot", {})
        if options.num_fewshot is not None and any(count != options.num_fewshot for count in shots.values()):
            raise UsageError(
                f"evaluate.tasks.num_fewshot: {task} asks with {', '.join(map(str, set(shots.values())))} examples, "
                "and with no other number. Leave the option out."
            )
        return _figures(results, task, name).model_copy(update={"cut_questions": asked.cut})


def _tasks_of(options: Tasks) -> Any:
    from datasets import disable_progress_bars
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bars()
    if options.include_path is not None:
        own = TaskManager(include_path=options.include_path, include_defaults=False)
        if set(options.names) <= set(own.all_tasks):
            return own  # an index of the harness's own fourteen thousand takes ten seconds
    return TaskManager(include_path=options.include_path)


def harness_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int,
    on_batch: Callable[[float], None] = lambda share: None,
    is_chat: bool = False,
) -> Any:
    """The model as the harness takes one. With `is_chat` nothing stands before what its chat template writes."""
    from lm_eval.models.huggingface import HFLM

    class CountingModel(HFLM):  # type: ignore[misc]  # the package has no types
        """Counts the questions that it has been given, has answered, and has cut to what the model reads."""

        asked = answered = cut = 0

        def loglikelihood(self, requests: Sequence[Any], **options: Any) -> Any:
            self.asked += len(requests)
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Sequence[Any], **options: Any) -> Any:
            self.asked += len(requests)
            for request in requests:
                question, how = request.args
                room = self.max_length - how.get("max_gen_toks", self.max_gen_toks)
                self.cut += len(self.tok_encode(question)) > room
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Sequence[Any], *given: Any, **options: Any) -> Any:
            self.cut += sum(len(context) + len(answer) - 1 > self.max_length for _, context, answer in requests)
            return super()._loglikelihood_tokens(requests, *given, **options)

        def _model_call(self, inps: torch.Tensor, *given: Any, **options: Any) -> Any:
            found = super()._model_call(inps, *given, **options)
            self._count(len(inps))
            return found

        def _model_generate(self, context: torch.Tensor, *given: Any, **options: Any) -> Any:
            written = super()._model_generate(context, *given, **options)
            self._count(len(context))
            return written

        def _count(self, rows: int) -> None:
            self.answered += rows
            on_batch(min(1.0, self.answered / max(self.asked, 1)))

    complete = copy.deepcopy(tokenizer)  # the harness reads these two, and would add a token to pad with
    complete.eos_token = complete.eos_token or complete.bos_token or complete.convert_ids_to_tokens(0)
    complete.pad_token = complete.pad_token or complete.eos_token
    if is_chat:
        complete.chat_template = template_of_one_day(complete)
    begin = complete.bos_token_id if complete.bos_token_id is not None else complete.eos_token_id
    adds_begin = False if is_chat else None  # None: as the tokenizer does
    return CountingModel(
        pretrained=model, tokenizer=complete, batch_size=batch_size, prefix_token_id=begin, add_bos_token=adds_begin
    )


def _figures(results: dict[str, Any], task: str, name: str) -> TaskFigures:
    """The harness's results of a task, or of the group that it is."""
    found = results.get("groups", {}).get(task) or results["results"].get(task)
    if found is None:  # a tag, which has no figures of its own
        raise CtdError(f"{task} stands for several tasks: name {', '.join(results['results'])}.")
    figures: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in found.items():
        metric, comma, rule = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        is_error = metric.endswith("_stderr")
        title = metric.removesuffix("_stderr") + ("" if rule == "none" else f" ({rule})")
        (errors if is_error else figures)[title] = float(value)
    counted = results.get("n-samples", {})
    parts = [
        counted[part]["effective"] for part in results.get("group_subtasks", {}).get(task) or [task] if part in counted
    ]
    return TaskFigures(task=task, model=name, figures=figures, errors=errors, questions=sum(parts))
