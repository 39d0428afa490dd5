"""Translate a test set with a served model and score it.

No score unless every sentence was answered, or a part is wanted, which then says over how many; what was answered
before, here or in the cache, is not requested again.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.benchmark.answers import AnswerCache, Identity, Journal
from orchestrator.benchmark.requests import (
    CONCURRENCY,
    DECODING_PARAMS,
    FailedSegment,
    Hypothesis,
    Message,
    decode,
    translate,
)
from orchestrator.benchmark.results import BenchmarkResult, has_result, read_result
from orchestrator.data.datasets import Dataset, ParallelText, prompt
from orchestrator.data.testset import describe_subset
from orchestrator.errors import PrerequisiteError, SpecError, StageError
from orchestrator.files import atomic_write, sha256_json
from orchestrator.processes.interruptible import run_interruptible
from orchestrator.processes.progress import Progress
from orchestrator.scoring.diagnostics import diagnose
from orchestrator.scoring.metrics import load_metric, normalize_segment, score_system, seed, spacing_warning
from orchestrator.serving.endpoint import Endpoint, list_models
from orchestrator.specs.benchmark_spec import BenchmarkSpec

log = logging.getLogger("orchestrator")

_MIXED = "may be another model than"


@dataclass(frozen=True)
class EvalOptions:
    """How a benchmark is carried out; nothing of this changes an answer."""

    fresh: bool = False  # request every sentence anew: neither the cache nor an attempt that was cut short is used
    reuse_cache: bool = True  # not of a rerun, which is there to request again
    allow_incomplete: bool = False  # score what was answered, where some sentences were not


@dataclass(frozen=True)
class EvalRequest:
    """A test set, and the model that translates it in one way."""

    target: str
    dataset: Dataset
    text: ParallelText  # the sentences that are requested
    n_testset: int  # how many the split has
    bench: BenchmarkSpec
    identity: Identity
    server: str = ""  # address of a server that runs already, and the model's name there; '' for one of ours
    max_concurrent: int = 1  # what LLaMA-Factory's huggingface engine works on at once

    def messages(self, index: int) -> list[Message]:
        return [{"role": "user", "content": prompt(self.dataset.entry.instruction, self.text.sources[index])}]

    @cached_property
    def prompts_sha256(self) -> str:
        return sha256_json([self.messages(index) for index in range(len(self.text.sources))])

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the answers: two benchmarks with the same key are the same."""
        bench = self.bench
        return sha256_json({
            "target": self.target, "server": self.server, "testset": self.dataset.name, "split": bench.split,
            "text": self.text.sha256, "prompts": self.prompts_sha256, "identity": self.identity.parts(),
            "decoding": [getattr(bench, name) for name in (*DECODING_PARAMS, "request")],
        })  # fmt: skip


def evaluate(
    request: EvalRequest, connect: Callable[[], Endpoint], folder: Path, options: EvalOptions = EvalOptions()
) -> BenchmarkResult:
    """Translate a test set and score it. Leaves scores.json, hypotheses.jsonl and the texts for sacrebleu in a folder.

    `connect` gives the server, and starts it if need be; it is not called where all is answered already. The folder may
    be one where the benchmark was cut short. Raises SpecError: no sentence, or the server would drop a wish of the
    spec; PrerequisiteError: the server refuses all requests, or a metric cannot be computed; StageError: a sentence got
    no answer, or the disk is full. What was answered stays: the same again goes on.
    """
    if not request.text.sources:
        raise SpecError(f"{request.dataset.name} {request.bench.split} has no sentence to translate")
    for metric in request.bench.metrics:
        load_metric(metric, request.dataset.entry.target_lang)
    seed()  # its errors come before hours of translating
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder, request.text.sources, request.text.references) as journal:
        made = _Evaluation(request, connect, folder, journal, options)
        made.collect()
        journal.rewrite_sorted(made.failures)
        if made.failures and not (options.allow_incomplete and journal.answers):
            made.result().save(folder)
            first = min(made.failures, key=lambda each: (not each.attempts, each.index))
            raise StageError(
                f"{len(made.failures)} of {len(request.text.sources)} sentences got no answer, so there is no score; "
                f"the first, sentence {first.index + 1}: {first.error}",
                f"the answers that came are in {journal.path}; when the server is well again, the same command goes on "
                "with what is missing (--allow-incomplete: scores over what was answered)",
            )
        result = made.scored()
        result.save(folder)
    for warning in result.warnings:
        log.warning("%s", warning)
    return result


@dataclass
class _Evaluation:
    request: EvalRequest
    connect: Callable[[], Endpoint]
    folder: Path
    journal: Journal
    options: EvalOptions
    endpoint: Endpoint | None = None
    n_cache_hits: int = 0
    failures: list[FailedSegment] = field(default_factory=list)
    speed: dict[str, int | float | None] | None = None
    mixed: list[str] = field(default_factory=list)  # signs that answers are of several models, of earlier attempts too

    def __post_init__(self) -> None:
        self.n_resumed = len(self.journal.answers)
        identity, owners = self.request.identity, dict[str, object]()
        if identity.backend is None:  # a server of others, which says what it is
            self.endpoint = self.connect()
            with suppress(PrerequisiteError):  # the list is optional
                owners = list_models(self.endpoint) or {}
        self.backend = identity.backend or ("vllm" if "vllm" in owners.values() else "openai")
        self.decoding = decode(self.backend, self.request.bench, identity.arguments)
        if self.n_resumed and has_result(self.folder):
            self.mixed = [each for each in read_result(self.folder).warnings if _MIXED in each]

    def collect(self) -> None:
        request, bench, journal = self.request, self.request.bench, self.journal
        self.result().save(self.folder)  # from now on the folder says what it is about
        subset = describe_subset(len(request.text.sources), request.n_testset, bench.sample_seed)
        log.info("%s %s: %s sentences", request.dataset.name, bench.split, subset)
        cache = None  # another answer may be as right: a sampled one, or that of a model that nobody here has seen
        if self.decoding.greedy and request.identity.known:
            cache = AnswerCache(request.identity, self.decoding.sent)
        missing = [index for index in range(len(request.text.sources)) if index not in journal.answers]
        if cache is not None and self.options.reuse_cache and not self.options.fresh:
            for answer in cache.look_up((index, request.messages(index)) for index in missing):
                journal.add(answer)
                self.n_cache_hits += 1
            missing = [index for index in missing if index not in journal.answers]
        if self.n_resumed or self.n_cache_hits:
            log.info(
                "%d sentences were answered before, %d more are in the cache; %d are requested",
                self.n_resumed, self.n_cache_hits, len(missing),
            )  # fmt: skip
        if missing:
            if self.endpoint is not None and self.n_resumed:
                self._compare_with_earlier()
            self.endpoint = self.endpoint or self.connect()
            self.result().save(self.folder)
            self._request(missing, cache)

    def result(self, **scores: Any) -> BenchmarkResult:
        request, bench, answers = self.request, self.request.bench, self.journal.answers.values()
        n_requested = len(request.text.sources)
        return BenchmarkResult(
            status="complete" if len(answers) == n_requested else "incomplete",
            target=request.target,
            testset=request.dataset.name,
            split=bench.split,
            n_testset=request.n_testset,
            sample_seed=bench.sample_seed if n_requested < request.n_testset else None,
            n_requested=n_requested,
            n_segments=len(answers),
            failed=len(self.failures),
            errors=dict(Counter(failure.error for failure in self.failures).most_common(10)),
            n_resumed=self.n_resumed,
            n_cache_hits=self.n_cache_hits,
            prompt_tokens=_total([answer.prompt_tokens for answer in answers]),
            completion_tokens=_total([answer.completion_tokens for answer in answers]),
            speed=self.speed,
            text_sha256=request.text.sha256,
            prompts_sha256=request.prompts_sha256,
            request={
                "key": request.key,
                **request.dataset.entry.model_dump(include={"source_lang", "target_lang", "instruction"}),
                **bench.model_dump(include={"request_timeout_s", "metrics", "n_bootstrap"}),
                "base_url": self.endpoint.base_url if self.endpoint else None,
                "model": self.endpoint.model if self.endpoint else None,
                **asdict(self.decoding),
            },
            identity=request.identity.parts(),
            **{"warnings": self.mixed, **scores},
        )

    def scored(self) -> BenchmarkResult:
        """The result with scores of exactly the segments that are written for sacrebleu's command line."""
        entry, bench, text = self.request.dataset.entry, self.request.bench, self.request.text
        indices = sorted(self.journal.answers)
        answers = [self.journal.answers[index] for index in indices]
        texts = {
            "sources": [normalize_segment(text.sources[index]) for index in indices],
            "references": [normalize_segment(text.references[index]) for index in indices],
            "hypotheses": [normalize_segment(answer.hypothesis) for answer in answers],
        }
        for name, segments in texts.items():
            atomic_write(self.folder / f"{name}.txt", "".join(f"{segment}\n" for segment in segments))
        sources, references, hypotheses = texts.values()
        scores, mean, bleu4 = score_system(
            hypotheses, references, tgt_lang=entry.target_lang, metrics=bench.metrics, n_bootstrap=bench.n_bootstrap
        )
        issues = diagnose(
            sources, references, hypotheses, list(map(self._is_cut_off, answers)), entry.source_lang,
            entry.target_lang, instruction=entry.instruction, indices=indices,
        )  # fmt: skip
        warnings = [*self.mixed, *filter(None, [spacing_warning(scores, references, entry.target_lang)])]
        requested = self.endpoint.model if self.endpoint else None
        others = Counter(each.model for each in answers if each.model not in (None, requested) and not each.cached)
        for model, number in others.items() if requested else ():
            warnings.append(f"{number} of {len(answers)} replies name the model {model!r}; {requested!r} was requested")
        return self.result(
            scores=scores, mean_sentence_bleu=mean, llamafactory_bleu4=bleu4, diagnostics=issues, warnings=warnings
        )

    def _request(self, missing: Sequence[int], cache: AnswerCache | None) -> None:
        request, bench = self.request, self.request.bench
        most = bench.concurrency or max(CONCURRENCY.get(self.backend, 32), 1 + request.max_concurrent)
        concurrency, began, new = min(most, len(missing)), time.monotonic(), list[Hypothesis]()
        with Progress(len(missing), "translate", "sentences") as progress:

            def take(result: Hypothesis | FailedSegment) -> None:
                if result.attempts:
                    self.journal.add(result)
                if isinstance(result, FailedSegment):
                    self.failures.append(result)
                    progress.update(failed=len(self.failures))
                    return
                new.append(result)
                if cache is not None:
                    cache.add(request.messages(result.index), result)
                progress.update()

            self._translate(sorted(missing, key=lambda index: -len(request.text.sources[index])), concurrency, take)
        if new:
            self.speed = _speed(new, time.monotonic() - began, concurrency)

    def _translate(
        self, indices: Sequence[int], concurrency: int, on_result: Callable[[Hypothesis | FailedSegment], None]
    ) -> None:
        assert self.endpoint is not None
        run_interruptible(
            translate(
                self.endpoint,
                ((index, self.request.messages(index)) for index in indices),
                self.decoding.sent,
                concurrency=concurrency,
                timeout_s=self.request.bench.request_timeout_s,
                on_result=on_result,
                n_answered=len(self.journal.answers),
            )
        )

    def _compare_with_earlier(self) -> None:
        """Note where another model may answer at the address now than gave the answers of an earlier attempt."""
        before = min(self.journal.answers.values(), key=lambda answer: len(answer.hypothesis))
        results: list[Hypothesis | FailedSegment] = []
        self._translate([before.index], 1, results.append)
        signs = []
        for again in results:
            if isinstance(again, Hypothesis) and again.model != before.model:
                signs.append(f"its replies named {before.model}, now {again.model}")
            if isinstance(again, Hypothesis) and self.decoding.greedy and again.hypothesis != before.hypothesis:
                signs.append(f"sentence {before.index + 1} has another answer now")
        if signs:
            self.mixed.append(
                f"{self.request.server} {_MIXED} the one that gave the first {self.n_resumed} answers: "
                f"{'; '.join(signs)}. --fresh requests all of them anew"
            )

    def _is_cut_off(self, answer: Hypothesis) -> bool | None:
        """Whether an answer ended at max_tokens, or where the context was full."""
        if answer.finish_reason is not None and self.backend != "llamafactory-huggingface":
            return answer.finish_reason == "length"
        # That engine says length for some models that did stop: its count of tokens knows better.
        if answer.completion_tokens is None or self.decoding.max_tokens is None:
            return None
        return answer.completion_tokens - (answer.reasoning_tokens or 0) >= self.decoding.max_tokens


def _total(counts: Sequence[int | None]) -> int | None:
    return None if not counts or None in counts else sum(filter(None, counts))


def _speed(answers: Sequence[Hypothesis], wall_s: float, concurrency: int) -> dict[str, int | float | None]:
    latencies, tokens = sorted(each.latency_s for each in answers), _total([each.completion_tokens for each in answers])
    p50_s, p95_s = (latencies[math.ceil(share * len(latencies)) - 1] for share in (0.50, 0.95))
    speed = {
        "segments": len(answers), "wall_s": round(wall_s, 3), "segments_per_s": round(len(answers) / wall_s, 3),
        "tokens_per_s": None if tokens is None else round(tokens / wall_s, 1),
        "latency_p50_s": p50_s, "latency_p95_s": p95_s, "concurrency": concurrency,
    }  # fmt: skip
    log.info(
        "%(segments)d sentences in %(wall_s).1f s: %(segments_per_s).3g/s; latency %(latency_p50_s).3g s "
        "(95 %%: %(latency_p95_s).3g); %(concurrency)d requests at once",
        speed,
    )
    return speed
