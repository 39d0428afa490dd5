"""LLaMA-Factory's own loader, converters and processors on the first records of each dataset; no weights are loaded.

Runs in LLaMA-Factory's Python. Written against 0.9.5 (llamafactory/data/loader.py).
"""

import copy
import logging
import statistics
from itertools import groupby
from typing import Any

import datasets
from llamafactory.data import converter, get_template_and_fix_tokenizer, loader
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.logging import add_handler
from llamafactory.model import load_config, load_tokenizer

Answer = dict[str, Any]
UNCUT = 1 << 30  # a cutoff_len that no record reaches, in tokens
MAX_MEDIA = 10  # records that are tried where each opens images, videos or sounds
MAX_CHARS = 500  # of a message: LLaMA-Factory shows the record in it, however long that is


def probe(
    model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, limit: int = 100
) -> dict[str, Answer]:
    """Convert and tokenize the first `limit` records of each dataset for the stage of the training, by dataset's name.

    from: LLaMA-Factory's load_from; None where the dataset is not known. read, kept: records, and those trained on.
    problems: {record: from 1, or None, message, fatal: the training would end there, or else leaves it out}.
    tokens: {min, median, max} of the kept ones, before they are cut; over_cutoff: how many are cut.
    first: {text: [[text, is trained on], ...]}, the first one kept, cut; of two answers the other as `rejected`.
    """
    datasets.disable_progress_bars()
    data_args = copy.copy(data_args)
    data_args.streaming, data_args.tokenized_path, data_args.overwrite_cache = False, None, True
    data_args.preprocessing_num_workers = None
    data_args.max_samples = min(limit, data_args.max_samples or limit)
    made = _Probe(model_args, data_args, training_args, finetuning_args.stage)
    return {name: made.answer(name) for name in [*(data_args.dataset or []), *(data_args.eval_dataset or [])]}


class _Probe:
    def __init__(self, model_args: Any, data_args: Any, training_args: Any, stage: str) -> None:
        self.warnings: list[str] = []  # LLaMA-Factory's, of the record in work
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.warnings.append(record.getMessage())  # type: ignore[method-assign]
        add_handler(handler)
        self.model_args, self.data_args, self.training_args = model_args, data_args, training_args
        self.stage = "rm" if stage == "dpo" else stage  # as train/dpo/workflow.py calls it
        self.module = load_tokenizer(model_args)
        self.template = get_template_and_fix_tokenizer(self.module["tokenizer"], data_args)
        resized = model_args.resize_vocab
        self.vocabulary = UNCUT if resized else getattr(load_config(model_args).get_text_config(), "vocab_size", UNCUT)

    def answer(self, name: str) -> Answer:
        answer: Answer = {"from": None, "read": 0, "kept": 0, "over_cutoff": 0, "problems": []}
        answer |= {"tokens": None, "first": None}
        try:
            (attr,) = loader.get_dataset_list([name], self.data_args.dataset_dir)
            answer["from"] = attr.load_from
            if (self.stage == "rm") is not bool(attr.ranking):  # as _get_merged_dataset has it
                raise ValueError("The dataset is not applicable in the current training stage.")
            rows = self._rows(attr)
            answer["read"] = len(rows)
            self._each(attr, rows, answer)
            if not any(problem["fatal"] for problem in answer["problems"]):
                # All at once: what only shows between records, and whether any is left.
                aligned = converter.align_dataset(rows, attr, self.data_args, self.training_args)
                if not answer["kept"]:
                    raise RuntimeError("Cannot find valid samples, check `data/README.md` for the data format.")
                processor = loader._get_dataset_processor(self.data_args, self.stage, self.template, **self.module)
                aligned.map(processor.preprocess_dataset, batched=True, remove_columns=aligned.column_names)
        except Exception as error:
            answer["problems"].append(_problem(None, _text(error)))
        return answer

    def _rows(self, attr: Any) -> Any:
        """The first records as LLaMA-Factory reads them, not converted yet."""
        attr.num_samples = None  # drawn at random, they would not be the first
        data_args = copy.copy(self.data_args)
        if attr.images or attr.videos or attr.audios:
            data_args.max_samples = min(data_args.max_samples, MAX_MEDIA)

        def first_rows(**options: Any) -> Any:
            if any(mark in options["split"] for mark in "[+"):
                return datasets.load_dataset(**options)  # parts of splits cannot be streamed
            stream = datasets.load_dataset(**{**options, "streaming": True, "num_proc": None})
            rows = list(stream.take(data_args.max_samples))
            if not rows:
                raise ValueError(f'Instruction "{attr.split}" corresponds to no data!')  # as without streaming
            return datasets.Dataset.from_list(rows, features=stream.features)

        replaced = loader.load_dataset, loader.align_dataset
        loader.load_dataset, loader.align_dataset = first_rows, lambda dataset, *_: dataset
        try:
            return loader._load_single_dataset(attr, self.model_args, data_args, self.training_args)
        finally:
            loader.load_dataset, loader.align_dataset = replaced

    def _each(self, attr: Any, rows: Any, answer: Answer) -> None:
        """Record by record, so that a problem has a number."""
        convert = converter.get_dataset_converter(attr.formatting, attr, self.data_args)
        uncut, cut = (self._processor(length) for length in (UNCUT, self.data_args.cutoff_len))
        lengths: list[int] = []
        for number, row in enumerate(rows, start=1):
            self.warnings.clear()
            try:
                batch = {key: [value] for key, value in convert(row).items()}
                encoded = uncut.preprocess_dataset(batch)
                texts = [encoded[key][0] for key in encoded if key.endswith("input_ids") and encoded[key]]
                if not texts:
                    why = f"it is no example for stage {self.stage}: {' '.join(self.warnings[:1])}"
                    answer["problems"].append(_problem(number, why, fatal=False))
                    continue
                if (largest := max(max(ids, default=0) for ids in texts)) >= self.vocabulary:
                    # The template's tokens are added to a tokenizer that lacks them; the model has no row for them.
                    token = self.module["tokenizer"].convert_ids_to_tokens(largest)
                    what = f"token {token!r} is number {largest}, and the model knows {self.vocabulary}"
                    raise IndexError(f"{what}: it is of another template, or needs resize_vocab: true")
                if answer["first"] is None:
                    answer["first"] = self._pieces(cut.preprocess_dataset(batch))
                lengths.append(max(map(len, texts)))
            except Exception as error:
                names = f"; the record has {', '.join(row)}" if isinstance(error, KeyError) else ""
                answer["problems"].append(_problem(number, _text(error) + names))
        answer["kept"] = len(lengths)
        answer["over_cutoff"] = sum(length > self.data_args.cutoff_len for length in lengths)
        if lengths:
            answer["tokens"] = {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)}

    def _processor(self, cutoff_len: int) -> Any:
        data_args = copy.copy(self.data_args)
        data_args.cutoff_len, data_args.packing = cutoff_len, False
        return loader._get_dataset_processor(data_args, self.stage, self.template, **self.module)

    def _pieces(self, encoded: Any) -> dict[str, list[list[Any]]]:
        """An example as text, cut where it begins or ends to be trained on."""
        prefixes = {"text": "chosen_", "rejected": "rejected_"} if "chosen_labels" in encoded else {"text": ""}
        found = {}
        for side, prefix in prefixes.items():
            ids = encoded[f"{prefix}input_ids"][0]
            labels = encoded[f"{prefix}labels"][0] if f"{prefix}labels" in encoded else ids
            if self.stage == "ppo":  # its labels are another text, the answer in the data, which is not trained on
                labels = [IGNORE_INDEX] * len(ids)
            groups = groupby(zip(ids, labels), lambda pair: pair[1] != IGNORE_INDEX)  # noqa: B905
            decode = self.module["tokenizer"].decode
            found[side] = [[decode([token for token, _ in group]), is_trained] for is_trained, group in groups]
        return found


def _problem(record: int | None, message: str, *, fatal: bool = True) -> Answer:
    shown = message if len(message) <= MAX_CHARS else f"{message[:MAX_CHARS]} ..."
    return {"record": record, "message": shown, "fatal": fatal}


def _text(error: BaseException) -> str:
    """An exception with its cause: of data that cannot be read, the first says only that an error occurred."""
    text = f"{type(error).__name__}: {error}"
    return f"{text} ({_text(error.__cause__)})" if error.__cause__ is not None else text
