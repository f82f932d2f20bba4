"""Tasks for lm-evaluation-harness, of a few questions each."""

import json

import yaml

QUESTIONS = [
    {"question": f"What comes after {number}?", "choices": [str(number + 1), str(number - 1)], "gold": 0}
    for number in range(1, 13)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "gold",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}],
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


def write_tasks(folder, questions=QUESTIONS):
    """A directory with the tasks `next_number` (a choice), `number_written` (exact match) and the tag `numbers`."""
    folder.mkdir(exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    for name, task in (("next_number", CHOICE), ("number_written", WRITTEN)):
        data = {"dataset_path": "json", "validation_split": "validation", "tag": "numbers"}
        data["dataset_kwargs"] = {"data_files": {"validation": str(folder / "questions.jsonl")}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | data | task))
    return folder
