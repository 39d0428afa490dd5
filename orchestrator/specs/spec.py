"""The run spec: its fields, what they become for LLaMA-Factory, and what the run layer says itself.

Covered: Pydantic's checks, and how the sections agree.
Not covered: reading a spec file, and problems at their places (spec_file.py); whether the dataset, the model or the
programs exist (check.py).
Reads and writes nothing.
"""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from orchestrator.errors import SpecError
from orchestrator.specs.benchmark_spec import BenchmarkSpec as BenchmarkSpec
from orchestrator.specs.compute_spec import ComputeSpec

# Arguments of llamafactory-cli that a spec says elsewhere, and where.
OWNED: dict[str, str] = {
    "model_name_or_path": "write it as model.name_or_path",
    "adapter_name_or_path": "write it as model.adapter_name_or_path",
    "template": "write it as model.template",
    "default_system": "write it as model.default_system",
    "enable_thinking": "write it as model.enable_thinking",
    "trust_remote_code": "write it as model.trust_remote_code",
    "model_revision": "write it as model.revision",
    "dataset": "write it as the spec's dataset",
    "eval_dataset": "write it as the spec's eval_dataset; for held-out rows of the dataset itself use val_size",
    "dataset_dir": "it is the run folder",
    "output_dir": "it is output/ in the run folder",
    "overwrite_output_dir": "each run has a new output folder",
    "resume_from_checkpoint": "each run starts in a new output folder",
    "do_train": "a spec with a train section trains",
    "seed": "write it as the spec's seed",
    "enable_jit_checkpoint": "it is on, so that Ctrl-C leaves a checkpoint",
    "infer_backend": "write it as serve.infer_backend",
    "export_dir": "write it as export.export_dir",
}


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OpenSection(BaseModel):
    """A section that takes LLaMA-Factory's arguments beside its own fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, JsonValue]

    def extra_arguments(self) -> dict[str, Any]:
        """The LLaMA-Factory arguments among the section's values, under their own names."""
        return dict(self.__pydantic_extra__ or {})


class ModelSpec(_Section):
    """The model, and all that decides how a conversation is put to it: the same in training, serving and export."""

    name_or_path: str = Field(min_length=1)
    """A folder (relative to the workspace, or absolute) or a hub id such as Qwen/Qwen2.5-7B-Instruct."""
    template: str | None = None
    """LLaMA-Factory's name of the chat template. Left out: the one that it lists the model with, by id or folder name.

    null, or where it lists none: LLaMA-Factory takes the tokenizer's own, or none at all."""
    adapter_name_or_path: str | None = None
    """A LoRA adapter to start from, or to serve where the spec does not train."""
    default_system: str | None = None
    """System text where a record has none. None: the template's own."""
    enable_thinking: bool | None = None
    """For reasoning templates: whether the model may think. None: LLaMA-Factory's default."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model is run."""
    revision: str | None = None
    """Branch, tag or commit on the hub. None: main."""


class TrainSpec(_OpenSection):
    """`llamafactory-cli train`: the fields below, and any other argument of LLaMA-Factory under its own name."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto"] = "sft"
    """Training stage."""
    finetuning_type: Literal["lora", "oft", "freeze", "full"] = "lora"
    """What is trained: an adapter (lora, oft), some layers (freeze) or all weights (full)."""
    lora_target: str | list[str] | None = None
    """Modules that get an adapter, comma-separated, or all. None: LLaMA-Factory's default, all."""
    max_samples: int | None = Field(None, gt=0)
    """Train on the first N records only. None: all."""

    def arguments(self) -> dict[str, Any]:
        """Every argument of the section; our own fields are left out where they are None."""
        own = {key: value for key in type(self).model_fields if (value := getattr(self, key)) is not None}
        return {**own, **self.extra_arguments()}


class ServeSpec(_OpenSection):
    """The server: the fields below, and any argument of `llamafactory-cli api`, or of `vllm serve` by backend."""

    backend: Literal["llamafactory", "vllm"] = "llamafactory"
    """llamafactory: `llamafactory-cli api`. vllm: `vllm serve` of the environment that ORCHESTRATOR_VLLM names.

    vllm answers many requests at once. Its arguments stand here under vLLM's names: max_model_len, dtype, ..."""
    merge: bool = False
    """With backend vllm: merge the adapter into its model first, for up to 1.5 times the speed."""
    infer_backend: Literal["huggingface", "vllm", "sglang"] = "huggingface"
    """LLaMA-Factory's inference engine, with backend llamafactory. huggingface answers one request at a time."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but 127.0.0.1 opens the model to the network."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port to listen on. None: a free one for a benchmark, 6006 for `serve`."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the server. None: the compute section's."""
    max_concurrent: int = Field(1, ge=1)
    """Requests that the huggingface engine works on at once (MAX_CONCURRENT)."""
    start_timeout_s: float = Field(900, gt=0)
    """How long loading the model may take, in seconds."""
    url: str | None = Field(None, pattern=r"^https?://")
    """An OpenAI-compatible server that runs already, up to and including /v1: nothing is started then."""
    model_name: str | None = None
    """The model's name on the server at `url`. None: the only one that it lists."""

    @model_validator(mode="after")
    def _backend_has_what_is_said(self) -> Self:
        if self.backend == "vllm" and self.infer_backend != "huggingface":
            raise ValueError(
                "infer_backend names an engine of LLaMA-Factory's server, and backend is vllm: leave it out"
            )
        if self.backend == "vllm" and self.max_concurrent != 1:
            raise ValueError("max_concurrent is for LLaMA-Factory's server; vLLM's own is max_num_seqs")
        if self.backend == "vllm" and self.url is not None:
            raise ValueError("backend is for a server that is started here, and url names one that runs: leave one out")
        if self.merge and self.backend != "vllm":
            raise ValueError("merge is for backend vllm; LLaMA-Factory's huggingface engine merges as it loads")
        return self


class ExportSpec(_OpenSection):
    """`llamafactory-cli export`: the folder, and any argument of LLaMA-Factory that export takes."""

    export_dir: str | None = None
    """Where the whole model goes, relative to the workspace, or absolute. None: export/ in the run folder."""


class RunSpec(_Section):
    """One run: what is trained on what, how it is served, and which benchmarks follow."""

    name: str = Field(pattern=NAME)
    """Begins the run's id. Letters, digits, dot, underscore, hyphen; at most 64."""
    model: ModelSpec | None = None
    """The model. None only where serve.url names a server."""
    dataset: str | list[str] | None = None
    """What is trained on: a dataset of dataset_info/ (its train split), or several."""
    eval_dataset: str | list[str] | None = None
    """Datasets whose loss is taken during training (train.eval_strategy says when). None: none."""
    train: TrainSpec | None = None
    """Arguments of `llamafactory-cli train`. None: nothing is trained, the model is benchmarked as it is."""
    serve: ServeSpec = ServeSpec()
    """How the model is served for benchmarks and `serve`."""
    export: ExportSpec = ExportSpec()
    """How `export` writes the whole model."""
    benchmark: list[BenchmarkSpec] = []
    """Benchmarks, in order."""
    compute: ComputeSpec = ComputeSpec()
    """Devices and processes."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the training."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.train is not None and not self.datasets:
            raise ValueError("train is there, but no dataset to train on: add dataset: NAME")
        if self.train is None and self.dataset is not None:
            raise ValueError("dataset is there, but no train section: add train: {} with at least the learning rate")
        if self.eval_dataset is not None and self.train is None:
            raise ValueError("eval_dataset is for the loss during training, and there is no train section")
        if self.train is None and not self.benchmark and not {"serve", "export"} & self.model_fields_set:
            raise ValueError("nothing to do: add a train section, a benchmark list, or serve or export")
        if self.serve.url is None and self.model is None:
            raise ValueError("model is missing: add model: {name_or_path: FOLDER_OR_HUB_ID}")
        if self.serve.url is not None and any(
            mark in self.serve.url for mark in "@?#"
        ):  # not shown: it is kept nowhere
            raise ValueError("serve.url holds a user, a ? or a #: leave that out; a key goes into ORCHESTRATOR_API_KEY")
        if self.serve.url is not None and self.train is not None:
            raise ValueError("serve.url is for benchmarks without training: what is trained here is served from here")
        if self.serve.url is not None and any(item.base_model for item in self.benchmark):
            raise ValueError("benchmark.base_model cannot be had from serve.url")
        during = [item for item in self.benchmark if item.during]
        if len(during) > 1:
            raise ValueError("benchmark.during is there twice: one set chooses the checkpoint")
        if during and self.train is None:
            raise ValueError("benchmark.during is for a run that trains, and there is no train section")
        if during and (self.compute.nnodes not in (None, 1)):
            raise ValueError("benchmark.during is for a training on one machine: benchmark RUN@all afterwards")
        return self

    @property
    def datasets(self) -> list[str]:
        """The names in dataset."""
        return _names(self.dataset)

    @property
    def eval_datasets(self) -> list[str]:
        """The names in eval_dataset."""
        return _names(self.eval_dataset)

    @property
    def eval_names(self) -> dict[str, str]:
        """Name in eval_dataset -> its name in dataset_info.json, another one where it is trained on too."""
        taken, names = {*self.datasets, *self.eval_datasets}, {}
        for name in self.eval_datasets:
            names[name] = name
            while name in self.datasets and names[name] in taken:
                names[name] += "-validation"
            taken.add(names[name])
        return names


def _names(value: str | list[str] | None) -> list[str]:
    """As LLaMA-Factory reads them: text is split at commas."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value or [])


OPEN_SECTIONS: dict[str, type[_OpenSection]] = {"train": TrainSpec, "serve": ServeSpec, "export": ExportSpec}


# LLaMA-Factory's names of what the model section holds, and its fields.
MODEL_PLACES: dict[str, str] = {
    "model_name_or_path": "name_or_path",
    "adapter_name_or_path": "adapter_name_or_path",
    "template": "template",
    "default_system": "default_system",
    "enable_thinking": "enable_thinking",
    "trust_remote_code": "trust_remote_code",
    "model_revision": "revision",
}


def model_arguments(model: ModelSpec) -> dict[str, Any]:
    """The arguments that training, serving and export share, under LLaMA-Factory's names."""
    arguments = {name: getattr(model, field) for name, field in MODEL_PLACES.items()}
    arguments["trust_remote_code"] = model.trust_remote_code or None
    return {key: value for key, value in arguments.items() if value is not None}


def training_arguments(spec: RunSpec, model: ModelSpec | None, output_dir: str = "output") -> dict[str, Any]:
    """Everything that `llamafactory-cli train` is given, paths relative to the run folder, where it is started.

    Args:
        spec: what is trained.
        model: what it starts from, the spec's own or the same with absolute paths.
        output_dir: where its checkpoints go: the run's own folder, or that of the run that it joins.
    """
    if spec.train is None or not spec.datasets or model is None:
        raise SpecError(f"{spec.name} trains nothing: it has no train section")
    evaluated = {"eval_dataset": ",".join(spec.eval_names.values())} if spec.eval_names else {}
    return {
        **model_arguments(model),
        "do_train": True,
        **spec.train.arguments(),
        "dataset": ",".join(spec.datasets),
        **evaluated,
        "dataset_dir": ".",
        "output_dir": output_dir,
        "seed": spec.seed,
        # transformers: SIGTERM saves a checkpoint and ends the training in order. torchrun ends processes by SIGTERM to
        # start them again with other machines: what one of them saves then, alone, none of them can go on from.
        "enable_jit_checkpoint": True,
    }


def serving_arguments(model: ModelSpec, serve: ServeSpec) -> dict[str, Any]:
    """Everything that `llamafactory-cli api` is given."""
    return {**model_arguments(model), "infer_backend": serve.infer_backend, **serve.extra_arguments()}


def exporting_arguments(model: ModelSpec, export: ExportSpec, folder: str) -> dict[str, Any]:
    """Everything that `llamafactory-cli export` is given."""
    return {**model_arguments(model), **export.extra_arguments(), "export_dir": folder}


def spec_json(spec: RunSpec) -> dict[str, Any]:
    """The resolved spec, every default written out, as plain JSON values."""
    return spec.model_dump(mode="json")


def spec_sha256(spec: RunSpec) -> str:
    """Hash of the resolved spec; equal specs hash equally, however they were written."""
    return hashlib.sha256(json.dumps(spec_json(spec), sort_keys=True).encode()).hexdigest()


API_KEY_ENV = "ORCHESTRATOR_API_KEY"  # not OPENAI_API_KEY: that one is for OpenAI's server alone
