"""The run spec: its sections, and what they have to agree on."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from orchestrator.files import sha256_json
from orchestrator.specs.benchmark_spec import BenchmarkSpec as BenchmarkSpec
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.places import MODEL_ARGUMENTS, MODEL_PLACES

API_KEY_ENV = "ORCHESTRATOR_API_KEY"  # not OPENAI_API_KEY: that one is for OpenAI's server alone
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _check_texts(value: Any) -> Any:
    # Else Pydantic reports each alternative of the union.
    if not all(isinstance(each, str) for each in (value if isinstance(value, list) else [value])):
        raise ValueError("expected text, or a list of texts")
    return value


_Texts = Annotated[str | list[str], BeforeValidator(_check_texts)]


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
    """The model, and all that decides how it sees a conversation: the same in training, serving and export."""

    name_or_path: str = Field(min_length=1)
    """A folder (relative to the workspace, or absolute) or a hub id such as Qwen/Qwen2.5-7B-Instruct."""
    template: str | None = None
    """LLaMA-Factory's name of the chat template. Left out: the one that it lists the model with, by id or folder name;
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
    arguments: dict[str, JsonValue] = {}
    """LLaMA-Factory's arguments that make another model of it: add_tokens, rope_scaling, ... Written in train, they are
    moved here, so that the server and the export get them too."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # Pydantic's own fails at a dict

    def trained(self, folder: str, *, is_adapter: bool) -> "ModelSpec":
        """What a training of this model left in a folder."""
        if is_adapter:
            return self.model_copy(update={"adapter_name_or_path": folder})
        # The folder's own config.json says how positions were scaled, and LLaMA-Factory would scale them again.
        kept = {name: value for name, value in self.arguments.items() if name not in ("rope_scaling", "cutoff_len")}
        changes = {"name_or_path": folder, "adapter_name_or_path": None, "revision": None, "arguments": kept}
        return self.model_copy(update=changes)


class TrainSpec(_OpenSection):
    """`llamafactory-cli train`: the fields below, and any other argument of LLaMA-Factory under its own name."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto"] = "sft"
    """Training stage."""
    finetuning_type: Literal["lora", "oft", "freeze", "full"] = "lora"
    """What is trained: an adapter (lora, oft), some layers (freeze) or all weights (full)."""
    lora_target: _Texts | None = None
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
    """llamafactory: `llamafactory-cli api`. vllm: `vllm serve` of the environment that ORCHESTRATOR_VLLM names, which
    answers many requests at once; its arguments stand here under vLLM's names: max_model_len, dtype, ..."""
    merge: bool = False
    """With backend vllm: merge the adapter into its model first, which can be faster."""
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
    def _check_backend_options(self) -> Self:
        for name in ("infer_backend", "max_concurrent", "url") if self.backend == "vllm" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is nothing to backend: vllm; leave one of them out")
        if self.merge and self.backend != "vllm":
            raise ValueError("merge is for backend vllm; LLaMA-Factory's huggingface engine merges as it loads")
        return self


class ExportSpec(_OpenSection):
    """`llamafactory-cli export`: the folder, and any argument of LLaMA-Factory that export takes."""

    export_dir: str | None = None
    """Where the model goes, relative to the workspace, or absolute. None: export/ in the run folder."""


class RunSpec(_Section):
    """One run: what is trained on what, how it is served, and which benchmarks follow."""

    name: str = Field(pattern=NAME)
    """Begins the run's id. Letters, digits, dot, underscore, hyphen; at most 64."""
    model: ModelSpec | None = None
    """The model. None only where serve.url names a server."""
    dataset: _Texts | None = None
    """What is trained on: a dataset of dataset_info/ (its train split), or several."""
    eval_dataset: _Texts | None = None
    """Datasets whose loss is taken during training (train.eval_strategy says when). None: none."""
    train: TrainSpec | None = None
    """Arguments of `llamafactory-cli train`. None: nothing is trained, the model is benchmarked as it is."""
    serve: ServeSpec = ServeSpec()
    """How the model is served for benchmarks and `serve`."""
    export: ExportSpec = ExportSpec()
    """How `export` writes the model as one folder."""
    benchmark: list[BenchmarkSpec] = []
    """Benchmarks, in order."""
    compute: ComputeSpec = ComputeSpec()
    """Devices and processes."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the training."""

    @model_validator(mode="before")
    @classmethod
    def _move_model_arguments(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        train, model = _as_dict(value.get("train")), _as_dict(value.get("model"))
        given = {**_as_dict(model.get("arguments")), **{key: train[key] for key in MODEL_ARGUMENTS if key in train}}
        if not given or not model:
            return value
        if given.get("rope_scaling") is not None and "cutoff_len" in train:
            given["cutoff_len"] = train["cutoff_len"]  # the factor is cutoff_len by the model's own length
        moved = {**value, "model": {**model, "arguments": given}}
        if train:
            moved["train"] = {key: each for key, each in train.items() if key not in MODEL_ARGUMENTS}
        return moved

    @model_validator(mode="after")
    def _check_sections_agree(self) -> Self:
        trains, url, model = self.train is not None, self.serve.url, self.model
        is_idle = not trains and not self.benchmark and not {"serve", "export"} & self.model_fields_set
        needs_base = any(item.base_model for item in self.benchmark)
        is_full_model = self.train is not None and self.train.finetuning_type in ("full", "freeze")
        own = [name for name, value in (model.arguments if model else {}).items() if value]
        lost = own and self.serve.backend == "vllm" and not self.serve.merge and not is_full_model
        for is_wrong, problem in (
            (trains and not self.datasets, "train is there, but no dataset to train on: add dataset: NAME"),
            (not trains and self.dataset is not None, "dataset is there, but no train section: add one, train: {}"),
            (not trains and self.eval_dataset is not None, "eval_dataset is there, but no train section"),
            (is_idle, "nothing to do: add a train section, a benchmark list, or serve or export"),
            (url is None and model is None, "model is missing: add model: {name_or_path: FOLDER_OR_HUB_ID}"),
            # The address is not shown: it may hold a key.
            (set("@?#") & set(url or ""), f"serve.url holds a user, a ? or a #: a key goes into {API_KEY_ENV}"),
            (url is not None and trains, "serve.url is for benchmarks without training"),
            (url is not None and needs_base, "benchmark.base_model cannot be had from serve.url"),
            (lost, f"vLLM knows nothing of {', '.join(own)}, which makes another model: add serve.merge: true"),
        ):
            if is_wrong:
                raise ValueError(problem)
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


OPEN_SECTIONS: dict[str, type[_OpenSection]] = {"train": TrainSpec, "serve": ServeSpec, "export": ExportSpec}


def _names(value: str | list[str] | None) -> list[str]:
    """As LLaMA-Factory reads them: text is split at commas."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value or [])


def _as_dict(section: Any) -> dict[str, Any]:
    """A section as it was given; {} for none, and for what is no section."""
    given = section.model_dump(exclude_unset=True) if isinstance(section, BaseModel) else section
    return given if isinstance(given, dict) else {}


def model_arguments(model: ModelSpec) -> dict[str, Any]:
    """The arguments that training, serving and export share, under LLaMA-Factory's names."""
    own = {name: getattr(model, field) for name, field in MODEL_PLACES.items()}
    own["trust_remote_code"] = model.trust_remote_code or None
    return {**{key: value for key, value in own.items() if value is not None}, **model.arguments}


def spec_json(spec: RunSpec) -> dict[str, Any]:
    """The resolved spec, every default written out, as plain JSON values."""
    return spec.model_dump(mode="json")


def spec_sha256(spec: RunSpec) -> str:
    """Hash of the resolved spec; equal specs hash equally, however they were written."""
    return sha256_json(spec_json(spec))
