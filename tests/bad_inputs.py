"""Wrong inputs, and a part of the message that is told: the cases of tests/recipes/test_bad_input.py."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
import yaml
from loopback import LoopbackServer, Reply
from tiny import ROWS, write_model

from distill_tune import cache
from distill_tune.cache.shard import Shard

# One wrong setting each, told before anything heavy is imported: overrides, and a part of the message.
AT_ONCE = [
    ("kd_raito=0.1", "kd_raito: no such key, did you mean kd_ratio?"),
    ("mode.apply_lora_to_output=True", "mode: no such key, did you mean model?"),
    ("zzz=1", "zzz: no such key, and nothing would read it"),
    ("lmbda=0.5", "lmbda: no such key, did you mean rollouts.lmbda?"),
    (
        "teacher_cache=cache cache.kind=sampled rollouts=distill_tune.rollouts.OnPolicy",
        "teacher_cache=cache: no cache has what rollouts write while the student trains; leave one out",
    ),
    (
        "rollouts=distill_tune.rollouts.OnPolicy ~teacher_model kd_ratio=0",
        "nothing heeds it without teacher_model; leave it out",
    ),
    ("learning_rate=1e-4", "learning_rate: no such key, did you mean optimizer.lr?"),
    ("learning_rate=1e-4 save_steps=5", "did you mean save_every_n_steps?\n  these are keys of another tool"),
    ("models_dir=models", "models_dir: nothing reads it, since no path has ${models_dir}; leave it out"),
    ("deepspeed=zero.json", "deepspeed: no such key, and nothing would read it"),
    ("kd_ratio=1.5", "kd_ratio=1.5: must be a number from 0 to 1"),
    ("kd_ratio=half", "kd_ratio=half: must be a number from 0 to 1"),
    ("temperature=0", "temperature=0: must be a number above 0"),
    ("epochs=0", "epochs=0: must be a whole number of at least 1"),
    ("batch_size=2.5", "batch_size=2.5: must be a whole number of at least 1 or null"),
    (
        "max_tokens_per_batch=4096",
        "max_tokens_per_batch=4096: takes the place of batch_size; set batch_size=null as well",
    ),
    ("batch_size=null", "batch_size=null: needs max_tokens_per_batch"),
    ("teacher_dtype=int4", "teacher_dtype=int4: must be one of bf16, fp32"),
    ("temperature_squared=2", "temperature_squared=2: must be True or False"),
    ("temperature=[1,2]", "temperature=[1, 2]: must be a number above 0, or a schedule, {_component_: distill_tune."),
    ("teacher_combination=vote", "teacher_combination=vote: must be one of mixture, sum, by_row"),
    ("teacher_combination=sum", "teacher_combination=sum: teacher_model names one teacher; give a list"),
    ("dataset_temperature=2", "dataset_temperature=2: dataset names one dataset; give a list"),
    (
        "teacher_model._component_=distill_tune.teachers.EMA teacher_offload=True",
        "teacher_offload: distill_tune.teachers.EMA does not heed it; it is for models",
    ),
    ("cache.kind=sampled", "cache: kd_single_device does not read it without teacher_cache; the recipe"),
    (
        "teacher_cache=cache ~teacher_model kd_ratio=0",
        "teacher_cache=cache: nothing heeds it without teacher_model; leave it out",
    ),
    ("teacher_prompt_template=hello", "teacher_prompt_template=hello: must be text with {input}"),
    ("augmentations=3", "augmentations=3: must be a list of components"),
    ("dataset_temperature=0", "dataset_temperature=0: must be a number above 0 or null"),
    ("teacher_model=[]", "teacher_model=[]: is an empty list"),
    ("model=distill_tune.models.from_hf model.path=x.gguf", "model.path=x.gguf: no such file"),
    (
        "teacher_quantizer._component_=distill_tune.teachers.NF4 teacher_offload=True",
        "teacher_offload=True: streams plain weights alone; leave teacher_quantizer out",
    ),
    (
        "hidden_loss._component_=distill_tune.losses.HiddenLoss hidden_loss.positions=all teacher_max_seq_len=9",
        "hidden_loss.positions=all: teacher_max_seq_len has teacher and student read different rows",
    ),
    ("run_val_every_n_steps=2", "run_val_every_n_steps=2: nothing heeds it without dataset_val; leave it out"),
    ("fake_quant_after_n_steps=4", "fake_quant_after_n_steps=4: nothing heeds it without quantizer; leave it out"),
    ("batch_size_val=4", "batch_size_val=4: nothing heeds it without dataset_val; leave it out"),
    ("log_every_n_steps=5", "log_every_n_steps=5: nothing heeds it without metric_logger; leave it out"),
    ("log_peak_memory_stats=False", "log_peak_memory_stats=False: nothing heeds it without metric_logger"),
    ("resume_with_changes=True", "resume_with_changes=True: nothing heeds it without resume or resume_from_checkpoint"),
    (
        "metric_logger._component_=torchtune.training.metric_logging.CometLogger",
        "metric_logger: torchtune.training.metric_logging.CometLogger needs the package comet_ml; pip install comet_ml",
    ),
    ("profiler=True", "profiler=True: must be a mapping or null"),
    ("batch_size=True", "batch_size=True: must be a whole number of at least 1 or null"),
    ("max_steps_per_epoch=-1", "max_steps_per_epoch=-1: must be a whole number of at least 1 or null"),
    ("clip_grad_norm=0", "clip_grad_norm=0: must be a number above 0 or null"),
    ("dtype=fp16", "dtype=fp16: must be one of bf16, fp32; gradients underflow in fp16 without loss scaling"),
    ("dtype=float", "dtype=float: must be one of bf16, fp32"),
    ("device=gpu", "device=gpu: must be cpu, cuda, cuda:N, mps or auto (the fastest that is there)"),
    ("on_bad_row=ignore", "on_bad_row=ignore: must be one of stop, skip"),
    ("shuffle=maybe", "shuffle=maybe: must be True or False"),
    ("seed=-1", "seed=-1: must be a whole number of at least 0 or null"),
    ("resume_from_checkpoint=nowhere", "resume_from_checkpoint=nowhere: no such folder"),
    ("output_dir=config.yaml/out", "output_dir=config.yaml/out: cannot be made: config.yaml is a file"),
    ("optimizer.lr=1e-3 optimizer=3", "optimizer=3: must be a component"),
    ("dataset=[]", "dataset=[]: is an empty list"),
    ("tokenizer.path=nowhere.model", "tokenizer.path=nowhere.model: no such file"),
    ("checkpointer.checkpoint_dir=nowhere", "checkpointer.checkpoint_dir=nowhere: no such folder"),
    ("checkpointer.checkpoint_files=[b.safetensors]", "b.safetensors: no such file"),
    ("~teacher_model", "teacher_model: missing; kd_ratio=0.5 needs a teacher (kd_ratio=0 trains without one)"),
    ("~optimizer", "optimizer: missing; the recipe needs it"),
    ("~nothing", "~nothing: there is no nothing to remove"),
    ("+kd_ratio=0.1", "+kd_ratio=0.1: kd_ratio is there already; leave out the +"),
    ("kd_ratio", "kd_ratio: not an override; write key=value, +key=value or ~key"),
    ("kd_ratio=[", "kd_ratio=[: the value is not valid YAML"),
    ("seed.x=1", "seed={'x': 1}: must be a whole number"),
    (
        "teacher_model={_component_: distill_tune.teachers.Cached, path: cache} kd_ratio=0.5",
        "Cached, ...: quote it, since a shell parts words at blanks: "
        "'teacher_model={_component_: distill_tune.teachers.Cached, path: cache}'",
    ),
    ("--kd_ratio=1", "--kd_ratio=1: no such option; settings are written key=value"),
    (
        "enable_activation_offloading=True",
        "enable_activation_offloading=True: nothing heeds it without enable_activation_checkpointing; leave it out",
    ),
]

LOSS, HIDDEN = "kd_loss._component_=distill_tune.losses.", "hidden_loss._component_=distill_tune.losses.HiddenLoss"
THROUGH = ("teacher_cache=cache", "cache.kind=top_k")
ARGUMENTS = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "embed_dim", "intermediate_dim", "max_seq_len")
LOGGERS = "torchtune.training.metric_logging."
KIND = " ".join(f"~teacher_model.{name}" for name in ARGUMENTS) + " teacher_model=distill_tune.teachers."
RATIO = "~kd_ratio kd_ratio._component_=distill_tune.training.Linear kd_ratio.start=0.5"

# One wrong argument each, found when the component's module is imported.
OF_COMPONENTS = [
    ("model.lora_rnk=8 model=torchtune.models.llama3_2.lora_llama3_2", "has no such argument, did you mean lora_rank"),
    (
        "model.num_layer=2",
        "model.num_layer: torchtune.models.llama3_2.llama3_2 has no such argument, did you mean num_layers?",
    ),
    ("model.num_layers=two", "model.num_layers=two: must be a whole number"),
    (
        "model.path=nowhere",
        "1 fault in config config.yaml and the command line\n  model.path: torchtune.models.llama3_2.llama3_2 "
        "has no such argument; for a model's folder: model=distill_tune.models.from_hf model.path=nowhere\n",
    ),
    ("~model.vocab_size", "model.vocab_size: missing; torchtune.models.llama3_2.llama3_2 needs it"),
    ("~checkpointer", "checkpointer: missing; torchtune.models.llama3_2.llama3_2 does not know its folder"),
    ("~teacher_checkpointer", "teacher_checkpointer: missing; torchtune.models.llama3_2.llama3_2 does not know"),
    (
        "optimizer=torch.optim.AdmW",
        "torch.optim.AdmW: torch.optim has no AdmW, did you mean AdamW",
    ),
    ("optimizer=AdamW", "optimizer=AdamW: must be the dotted name of what to call, did you mean torch.optim.AdamW?"),
    ("optimizer=.AdamW", "optimizer._component_=.AdamW: must be the dotted name of what to call"),
    ("optimizer=adamw_torch", "did you mean torch.optim.AdamW"),
    ("kd_loss=ForwardKL", "did you mean distill_tune.losses.ForwardKL?"),
    ("lr_scheduler=StepLR", "did you mean torch.optim.lr_scheduler.StepLR?"),
    ("dataset=instruct", "did you mean distill_tune.data.instruct?"),
    ("teacher_quantizer=int4", "teacher_quantizer=int4: must be the dotted name of what to call"),
    (
        "teacher_quantizer._component_=torchao.quantization.Int4WeightOnlyConfig",
        "teacher_quantizer: torchao.quantization.Int4WeightOnlyConfig needs the package mslk; pip install mslk",
    ),
    ("quantizer=q4_0", "quantizer=q4_0: must be the dotted name of what to call, did you mean distill_tune.qat.Q4_0?"),
    (
        "quantizer._component_=torchao.quantization.Int8WeightOnlyConfig",
        "quantizer=torchao.quantization.Int8WeightOnlyConfig: none that a student trains with; there are Q4_0, Q8_0,",
    ),
    ("quantizer._component_=distill_tune.qat.Int4WeightOnly quantizer.groupsize=48", "must be one of 32, 64, 128, 256"),
    (
        "quantizer._component_=torchtune.training.quantization.Int8DynActInt4WeightQATQuantizer quantizer.groupsize=64",
        "quantizer: Int8DynActInt4Weight rounds 64 weights of a row together, which do not divide the rows of "
        "layers.0.attn.q_proj (32), layers.0.attn.k_proj (32), layers.0.attn.v_proj (32) and 9 more; "
        "set quantizer.groupsize=32",
    ),
    ("hidden_loss=uniform", "hidden_loss=uniform: must be the dotted name of what to call"),
    ("optimizer.lr=abc", "optimizer.lr=abc: must be a number"),
    ("optimizer.lr=-1", "optimizer.lr=-1: torch.optim.AdamW: Invalid learning rate: -1"),
    ("optimizer.betas=[0.9,2]", "optimizer.betas=[0.9, 2]: torch.optim.AdamW: Invalid beta parameter at index 1: 2"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be a list of 2 values"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9: must be a list of 2 values"),
    ("optimizer.betas=[a,b]", "optimizer.betas=['a', 'b']: must be a list of 2 values"),
    ("optimizer=torchao.optim.AdamW8bit optimizer.betas=0.9", "optimizer.betas=0.9: must be a list of 2 values"),
    (f"{LOSS}JensenShannon kd_loss.beta=2", "kd_loss: distill_tune.losses.JensenShannon: beta=2: must be from 0 to 1"),
    (f"{LOSS}TopK kd_loss.k=0", "kd_loss: distill_tune.losses.TopK: k=0: must be at least 1"),
    (f"{LOSS}TopK kd_loss.n=5", "kd_loss.n: distill_tune.losses.TopK has no such argument"),
    (f"{HIDDEN} hidden_loss.layers=first", "HiddenLoss: layers=first: must be uniform, last, or pairs"),
    (f"{HIDDEN} hidden_loss.layers=[[9,1]]", "hidden_loss.layers: [9, 1]: the student has 2 layers, the teacher 3"),
    (f"{KIND}EMA +teacher_model.decay=2", "teacher_model.decay=2: must be from 0 to less than 1"),
    (f"{KIND}BaseModel", "the student without its adapters, and `model` has none"),
    (
        f"{KIND}Served +teacher_model.url=http://127.0.0.1:9",
        "teacher_model.url=http://127.0.0.1:9: no server answers (Connection refused); start one: distill-tune serve",
    ),
    (f"{KIND}Served +teacher_model.url=localhost:8000", "url=localhost:8000: must be http://machine:port or https"),
    (f"{KIND}Served +teacher_model.url=[]", "url=[]: name a server, http://machine:port"),
    (f"{KIND}Served +teacher_model.url=http://me:secret@x:1", "url=http://...@x: names a user; a server is given a"),
    (f"{KIND}Served", "teacher_model.url: missing; distill_tune.teachers.Served needs it"),
    (
        f"{KIND}Served +teacher_model.url=http://127.0.0.1:9 +teacher_model.kind=dense",
        "kind=dense: must be one of sampled, top_k, hidden",
    ),
    (
        f"{KIND}Served +teacher_model.url=http://127.0.0.1:9 +teacher_model.kind=sampled {LOSS}ReverseKL",
        "teacher_model.kind=sampled: a sampled record serves ForwardKL, not ReverseKL: kind top_k serves it",
    ),
    (
        f"{KIND}Served +teacher_model.url=http://127.0.0.1:9 {LOSS}TopK kd_loss.k=64",
        "teacher_model.kind=top_k: a top_k record of 50 tokens cannot serve TopK of 64: make one of 64, or of kind",
    ),
    (
        f"{KIND}Served +teacher_model.url=http://127.0.0.1:9 "
        "temperature._component_=distill_tune.training.Linear temperature.start=2 temperature.end=1",
        "a top_k record serves one temperature, and temperature is a schedule: take kind hidden, which serves any",
    ),
    (f"{KIND}HuggingFace +teacher_model.path=nowhere", "teacher_model.path=nowhere: no such folder"),
    (f"{RATIO} kd_ratio.change=1", "kd_ratio: its schedule gives 1.5 at step 1; it must stay from 0 to 1"),
    (RATIO, "kd_ratio: distill_tune.training.Linear: change or end: give one of them"),
    (
        "augmentations.0._component_=distill_tune.data.DropTokens augmentations.0.rate=2",
        "augmentations={'0': {'_component_'",
    ),
    (
        "lr_scheduler._component_=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "lr_scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau: has to be told metrics at each step",
    ),
    (
        "lr_scheduler._component_=torch.optim.lr_scheduler.OneCycleLR lr_scheduler.max_lr=1 lr_scheduler.total_steps=2",
        "lr_scheduler: torch.optim.lr_scheduler.OneCycleLR: Tried to step 3 times",
    ),
    ("kd_loss=torch.nn.CrossEntropyLoss", "kd_loss=torch.nn.CrossEntropyLoss: is not called with student, teacher"),
    ("kd_loss=distill_tune.losses.CrossEntropy", "is not called with student, teacher; needed is a divergence"),
    ("loss=torch.nn.MSELoss", "loss=torch.nn.MSELoss: is not called with student, targets, memory"),
    ("optimizer=torch.optim.LBFGS", "LBFGS: has to be told closure at each step"),
    (
        "optimizer=torch.optim.lr_scheduler.StepLR optimizer.step_size=3 ~optimizer.lr",
        "optimizer=torch.optim.lr_scheduler.StepLR: is no optimizer; name one",
    ),
    (
        "metric_logger=torch.nn.Identity",
        "torch.nn.Identity: is no logger, which has log_config, log_dict",
    ),
    ("profiler.active_steps=-1 profiler.enabled=True profiler.wait_steps=1 profiler.warmup_steps=1", "profiler: "),
    ("profiler.x=1", "profiler.x: torchtune.training.setup_torch_profiler has no such argument"),
    ("profiler.enabled=True profiler.outputdir=pr", "has no such argument, did you mean output_dir?"),
    ("optimizer.params=[]", "optimizer.params: the recipe passes this itself; leave it out"),
    ("optimizer=nopackage.Adam", "nopackage.Adam: no module named nopackage; is the package installed"),
    (
        "dataset._component_=distill_tune.data.docstrings dataset.source=my.json",
        "dataset.source: distill_tune.data.docstrings has no such argument; for rows of your own: "
        "dataset=distill_tune.data.instruct dataset.source=my.json",
    ),
    ("dataset.on_bad_row=skip", "has no such argument; it is a key of the config itself: on_bad_row=skip"),
    ("dataset.train_on_inputs=True", "dataset.train_on_inputs: distill_tune.data.instruct has no such argument"),
    ("dataset=torchtune.datasets.alpaca_dataset dataset.sorce=x", "has no such argument, did you mean source?"),
    ("+loss._component_=torchtune.modules.loss.CEWithChunkedOutputLoss +loss.ignore_index=0", "must be -100"),
]


class Wrong:
    """A folder with a valid config.yaml; each method breaks something and gives overrides that name it."""

    def __init__(self, folder: Path, tokenizer_file: Path) -> None:
        self.folder, self._tokenizer_file = folder, tokenizer_file

    def config(self, content: str | bytes) -> list[str]:
        path = self.folder / "config.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return []

    def line(self, text: str) -> list[str]:
        """config.yaml with another line."""
        path = self.folder / "config.yaml"
        path.write_text(path.read_text() + text + "\n")
        return []

    def rows(self, name: str, content: object, component: str = "instruct", **arguments: object) -> list[str]:
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        more = [f"+dataset.{key}={value}" for key, value in arguments.items()]
        return [f"dataset._component_=distill_tune.data.{component}", f"dataset.source={path}", *more]

    def model(self, **shape: int) -> Path:
        """A model's folder of its own, to be broken."""
        return write_model(self.folder / "model", self._tokenizer_file, seed=3, **shape)

    def file(self, name: str, content: str | bytes | None) -> list[str]:
        """The student's folder with another file, or without one."""
        folder = self.model()
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [f"checkpointer.checkpoint_dir={folder}", "~checkpointer.checkpoint_files"]

    def index(self, content: object) -> list[str]:
        text = content if isinstance(content, str) else json.dumps(content)
        overrides = self.file("model.safetensors.index.json", text)
        (self.folder / "model" / "model.safetensors").unlink()  # which comes before an index
        return overrides

    def cut(self, keep: int | float) -> list[str]:
        folder = self.model()
        weights = (folder / "model.safetensors").read_bytes()
        kept = int(keep * len(weights)) if isinstance(keep, float) else keep
        (folder / "model.safetensors").write_bytes(weights[:kept])
        return [f"checkpointer.checkpoint_dir={folder}"]

    def tensors(self, change: Callable[[dict], None]) -> list[str]:
        from safetensors.torch import load_file, save_file

        folder = self.model()
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return [f"checkpointer.checkpoint_dir={folder}"]

    def adapter(self) -> list[str]:
        folder = self.model()
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink()
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/nothing"}))
        return [f"checkpointer.checkpoint_dir={folder}", "~checkpointer.checkpoint_files"]

    def json_of(self, name: str, **changes: object) -> list[str]:
        folder = self.model()
        config = json.loads((folder / name).read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / name).write_text(json.dumps(config))
        return [f"checkpointer.checkpoint_dir={folder}"]

    def from_hf(self, **changes: object) -> list[str]:
        """The student built from its folder, whose config.json is changed."""
        self.json_of("config.json", **changes)
        settings = yaml.safe_load((self.folder / "config.yaml").read_text())
        settings["model"] = {"_component_": "distill_tune.models.from_hf", "path": str(self.folder / "model")}
        del settings["checkpointer"]
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return []

    def tokenizer_json(self, content: str | None, config: str = '{"eos_token": "</s>"}') -> list[str]:
        folder = self.folder / "tokenizer"
        folder.mkdir()
        if content is not None:
            (folder / "tokenizer.json").write_text(content)
        (folder / "tokenizer_config.json").write_text(config)
        return ["tokenizer=distill_tune.data.hf_tokenizer", f"tokenizer.path={folder}"]

    def pickle(self) -> list[str]:
        """Weights that would run code."""
        import pickle

        class Code:
            def __reduce__(self) -> tuple:
                return (open, (str(self_folder / "was_run"), "w"))

        self_folder = self.folder
        folder = self.model()
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.embed_tokens.weight": Code()}))
        return [f"checkpointer.checkpoint_dir={folder}", "checkpointer.checkpoint_files=[pytorch_model.bin]"]

    def gguf(self, content: bytes) -> list[str]:
        (self.folder / "teacher.gguf").write_bytes(content)
        settings = yaml.safe_load((self.folder / "config.yaml").read_text())
        settings["teacher_model"] = {
            "_component_": "distill_tune.models.from_hf",
            "path": str(self.folder / "teacher.gguf"),
        }
        del settings["teacher_checkpointer"]
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return []

    def served(self, status: int, answers: dict[str, object]) -> list[str]:
        """A served teacher whose server has these answers by path, all with one status."""

        def reply(method: str, path: str, body: bytes) -> Reply:
            return Reply(
                status if path in answers or status != 200 else 404, json.dumps(answers.get(path, {})).encode()
            )

        settings = yaml.safe_load((self.folder / "config.yaml").read_text())
        url = LoopbackServer(reply).url
        settings["teacher_model"] = {"_component_": "distill_tune.teachers.Served", "url": url}
        del settings["teacher_checkpointer"]
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return []

    def run_before(self, *files: str) -> list[str]:
        """An output folder in which a run has left something."""
        for name in files:
            path = self.folder / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        return []

    def copy_of_rows(self, change: Callable[[list[dict]], object]) -> list[str]:
        rows = [dict(row) for row in ROWS]
        change(rows)
        return self.rows("rows.json", rows)

    def cache(self, kind: str, /, *overrides: str, **changes: object) -> list[str]:
        """A stored teacher whose manifest lists no row, and overrides that take it."""
        encoding = cache.encoding_of(kind, {"vocab_size": 320, **({"width": 64} if kind == "hidden" else {})})
        manifest = cache.Manifest(kind, cache.settings_of(encoding), 0, {}, finished=True)
        (self.folder / "cache").mkdir()
        dataclasses.replace(manifest, **changes).write(self.folder / "cache")
        row = cache.HiddenEncoding(320, 1).encode(torch.zeros(1, 1), [1])
        Shard.write(self.folder / "cache", [bytes(16)], row)  # without one it would be no cache yet
        return [*f"{KIND}Cached +teacher_model.path=cache".split(), *overrides]

    def without(self, name: str) -> list[str]:
        shutil.rmtree(self.folder / name)
        return []


def _no_tensor(weights: dict) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _one_more(weights: dict) -> None:
    weights["model.layers.9.mlp.up_proj.weight"] = weights["model.norm.weight"].clone()


def _prefixed(weights: dict) -> None:
    for name in list(weights):
        weights[f"_orig_mod.{name}"] = weights.pop(name)


def _as_integers(weights: dict) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].char()


def _wider(weights: dict) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].repeat(1, 2)


_sink = io.BytesIO()
pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"instruction": "a", "output": "b"}]), _sink)
PARQUET = _sink.getvalue()
GOOD = {"instruction": "What is 1 plus 1?", "output": "1 plus 1 is 2, done."}
TURN = {"role": "user", "content": "hi"}

# What a server tells of itself, and of its tokens.
SERVED = {
    "engine": "distill-tune",
    "model": "other",
    "content": "1",
    "vocab_size": 320,
    "width": 64,
    "kinds": ["top_k"],
    "most_tokens_of_row": 4096,
    "most_log_probs": 320,
    "most_tokens_of_request": 4096,
    "most_bytes_of_answer": 1 << 30,
    "tokenizer": "another",
}
OTHER_TOKENS = {"tokens": {str(index): f"token{index}" for index in range(320)}, "added": []}

# Broken files of every kind: what is broken, and a part of the message.
OF_FILES: list[tuple[str, Callable[[Wrong], list[str]], str]] = [
    # config.yaml
    ("config: not YAML", lambda w: w.config("a: ["), "config config.yaml: not valid YAML"),
    ("config: a tab", lambda w: w.config("a:\n\tb: 1"), "config config.yaml: not valid YAML"),
    ("config: a key twice", lambda w: w.line("seed: 1"), "found duplicate key seed"),
    ("config: a list", lambda w: w.config("- a"), "must be a mapping of keys"),
    ("config: a number", lambda w: w.config("5"), "config config.yaml: "),
    ("config: empty", lambda w: w.config(""), "model: missing; the recipe needs it"),
    ("config: refers to itself", lambda w: w.line("metric_logger: ${metric_logger}"), "nterpolation"),
    (
        "config: a cycle",
        lambda w: w.line("clip_grad_norm: ${max_bad_steps}\nmax_bad_steps: ${clip_grad_norm}"),
        "nterpolation",
    ),
    (
        "config: refers to nothing",
        lambda w: w.line("clip_grad_norm: ${nothing}"),
        "Interpolation key 'nothing' not found",
    ),
    ("config: unknown resolver", lambda w: w.line("clip_grad_norm: ${magic:1}"), "magic"),
    ("config: unset variable", lambda w: w.line("clip_grad_norm: ${oc.env:NOT_SET_HERE}"), "NOT_SET_HERE"),
    ("config: null bytes", lambda w: w.config(b"a: \x00\x00"), "config config.yaml: not valid YAML"),
    ("config: latin-1", lambda w: w.config("name: caf\u00e9".encode("latin-1")), "config config.yaml: not valid YAML"),
    (
        "config: python tag",
        lambda w: w.line("seed2: !!python/object/apply:os.system [touch was_run]"),
        "not valid YAML",
    ),
    ("config: nested too deeply", lambda w: w.config("a: " + "[" * 5000), "config config.yaml: not valid YAML"),
    ("config: a number as key", lambda w: w.line("7: 8"), "7: no such key"),
    (
        "config: a value to come",
        lambda w: w.line("clip_grad_norm: ???"),
        "clip_grad_norm=???: has no value yet; give it one",
    ),
    ("config: nan", lambda w: w.line("clip_grad_norm: .nan"), "clip_grad_norm=nan: must be a number above 0"),
    # Checkpoints
    ("weights: none", lambda w: w.file("model.safetensors", None), "has no weights (model.safetensors or"),
    (
        "weights: file named is not there",
        lambda w: ["checkpointer.checkpoint_files=[b.safetensors]"],
        "b.safetensors: no such file",
    ),
    ("weights: cut in half", lambda w: w.cut(0.5), "model.safetensors: cannot be read"),
    ("weights: header alone", lambda w: w.cut(200), "model.safetensors: cannot be read"),
    ("weights: empty file", lambda w: w.cut(0), "model.safetensors: cannot be read"),
    (
        "weights: another file",
        lambda w: w.file("model.safetensors", b"<html>404</html>" * 9),
        "model.safetensors: cannot be read",
    ),
    ("weights: a tensor missing", lambda w: w.tensors(_no_tensor), "the checkpoint lacks layers.1.mlp"),
    ("weights: a tensor more", lambda w: w.tensors(_one_more), "the model has no place for"),
    ("weights: a wrong shape", lambda w: w.tensors(_wider), "shapes differ: layers.0.mlp"),
    ("weights: a prefix", lambda w: w.tensors(_prefixed), "it is torch.compile's"),
    ("weights: an int8", lambda w: w.tensors(_as_integers), "is quantised (model.layers.0.mlp.up_proj.weight is torch"),
    (
        "weights: quantised",
        lambda w: w.json_of("config.json", quantization_config={"quant_method": "gptq"}),
        "is quantised with gptq",
    ),
    ("weights: an adapter's", lambda w: w.adapter(), "is an adapter of someone/nothing, which is not here"),
    ("weights: run code", lambda w: w.pickle(), "pytorch_model.bin: cannot be read"),
    ("weights: another size of model", lambda w: [f"checkpointer.checkpoint_dir={w.model(width=64)}"], "shapes differ"),
    (
        "weights: more layers",
        lambda w: [f"checkpointer.checkpoint_dir={w.model(layers=3)}"],
        "the model has no place for layers.2",
    ),
    (
        "weights: fewer layers",
        lambda w: [f"checkpointer.checkpoint_dir={w.model(layers=1)}"],
        "the checkpoint lacks layers.1",
    ),
    ("index: not JSON", lambda w: w.index("{"), "model.safetensors.index.json is broken"),
    ("index: without weight_map", lambda w: w.index({}), "model.safetensors.index.json is broken"),
    ("index: a list", lambda w: w.index([]), "model.safetensors.index.json is broken"),
    ("index: absent file", lambda w: w.index({"weight_map": {"a": "model-9.safetensors"}}), "no such file: "),
    (
        "index: outside",
        lambda w: w.index({"weight_map": {"a": "../secret.safetensors"}}),
        "which is no file of this folder",
    ),
    ("index: absolute", lambda w: w.index({"weight_map": {"a": "/etc/passwd"}}), "which is no file of this folder"),
    (
        "index: a number for a file",
        lambda w: w.index({"weight_map": {"a": 5}}),
        "model.safetensors.index.json is broken",
    ),
    ("checkpoint_files: outside", lambda w: ["checkpointer.checkpoint_files=[../../etc/passwd]"], "checkpoint_files"),
    ("config.json: none", lambda w: w.file("config.json", None), "config.json"),
    ("config.json: not JSON", lambda w: w.file("config.json", "{"), "config.json is broken"),
    ("config.json: a list", lambda w: w.file("config.json", "[]"), "config.json is broken"),
    ("config.json: not UTF-8", lambda w: w.file("config.json", b"\xff\xfe{"), "config.json is broken"),
    (
        "from_hf: unknown family",
        lambda w: w.from_hf(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "GPT2LMHeadModel",
    ),
    ("from_hf: no width", lambda w: w.from_hf(hidden_size=None), "shapes differ"),
    ("from_hf: text for an epsilon", lambda w: w.from_hf(rms_norm_eps="small"), "rms_norm_eps"),
    ("from_hf: another model_type", lambda w: w.from_hf(model_type="phi3"), "model_type=phi3: is not that of a Llama"),
    ("from_hf: sees later tokens", lambda w: w.from_hf(is_causal=False), "is_causal=False: attention to later tokens"),
    ("from_hf: text for a number", lambda w: w.from_hf(num_hidden_layers="two"), "num_hidden_layers"),
    ("from_hf: no layers", lambda w: w.from_hf(num_hidden_layers=0), "num_hidden_layers"),
    (
        "from_hf: layers without end",
        lambda w: w.from_hf(num_hidden_layers=2**40),
        "must be a whole number from 1 to 10000",
    ),
    ("from_hf: heads that do not divide", lambda w: w.from_hf(num_attention_heads=5, head_dim=None), "model"),
    ("gguf: not one", lambda w: w.gguf(b"hello"), "teacher.gguf"),
    ("gguf: cut", lambda w: w.gguf(b"GGUF\x03\x00\x00\x00"), "teacher.gguf"),
    ("gguf: empty", lambda w: w.gguf(b""), "teacher.gguf"),
    ("model_type: unknown", lambda w: ["checkpointer.model_type=LLAMA9"], "LLAMA9"),
    (
        "checkpointer: another kind",
        lambda w: ["checkpointer._component_=torchtune.training.FullModelMetaCheckpointer"],
        "only Hugging Face folders are read",
    ),
    # Tokenizers
    ("tokenizer: none", lambda w: ["tokenizer.path=nowhere.model"], "tokenizer.path=nowhere.model: no such file"),
    (
        "tokenizer: not SentencePiece",
        lambda w: ["tokenizer.path=config.yaml"],
        "tokenizer.path=config.yaml: is no SentencePiece model",
    ),
    ("tokenizer: a folder for a file", lambda w: ["tokenizer.path=."], "tokenizer.path=.: is a folder"),
    ("tokenizer: of another kind", lambda w: ["tokenizer=torchtune.models.llama3.llama3_tokenizer"], "tokenizer"),
    ("tokenizer.json: none", lambda w: w.tokenizer_json(None), "the folder has no tokenizer.json"),
    ("tokenizer.json: not JSON", lambda w: w.tokenizer_json("{"), "tokenizer.path="),
    ("tokenizer.json: empty object", lambda w: w.tokenizer_json("{}"), "tokenizer.path="),
    ("tokenizer_config.json: broken", lambda w: w.tokenizer_json(TOKENIZER, "{"), "tokenizer.path="),
    ("tokenizer.json: no end of sequence", lambda w: w.tokenizer_json(TOKENIZER, "{}"), "no end-of-sequence token"),
    ("tokenizer: larger than the model", lambda w: w.tokenizer_json(TOKENIZER), "token"),
    # Rows
    ("rows: no file", lambda w: ["dataset.source=nowhere.json"], "dataset nowhere.json: no such file or folder"),
    ("rows: a folder without any", lambda w: ["dataset.source=."], "the folder has no .json"),
    ("rows: unknown ending", lambda w: w.rows("rows.xlsx", b"PK"), "cannot be read; known are .json"),
    ("rows: broken JSON", lambda w: w.rows("rows.json", '[{"instruction": "a"'), "broken JSON at line 1, column 21"),
    ("rows: one object", lambda w: w.rows("rows.json", {"data": [GOOD]}), "name the list with field: data"),
    ("rows: a number", lambda w: w.rows("rows.json", "5"), "must be a list of rows, found int"),
    ("rows: an empty list", lambda w: w.rows("rows.json", "[]"), "rows.json: is empty"),
    ("rows: an empty file", lambda w: w.rows("rows.jsonl", ""), "rows.jsonl: is empty"),
    ("rows: numbers", lambda w: w.rows("rows.json", [1, 2]), "row 1: must be an object with fields, found int"),
    (
        "rows: latin-1",
        lambda w: w.rows("rows.json", '[{"instruction": "\u00fc"}]'.encode("latin-1")),
        "not utf-8 at byte 18; save it as UTF-8, or name its encoding, such as dataset.encoding=latin-1",
    ),
    (
        "rows: GBK",
        lambda w: w.rows("rows.json", '[{"instruction": "\u4f60\u597d", "output": "\u597d"}]'.encode("gbk")),
        "or name its encoding, such as dataset.encoding=gbk",
    ),
    (
        "rows: UTF-16",
        lambda w: w.rows("rows.jsonl", json.dumps(GOOD).encode("utf-16")),
        "not utf-8 at byte 0; save it as UTF-8, or name its encoding, such as dataset.encoding=utf-16",
    ),
    (
        "rows: null bytes",
        lambda w: w.rows("rows.jsonl", json.dumps(GOOD).encode() + b"\n\x00\x00\n"),
        "row 2: broken JSON",
    ),
    (
        "rows: half a line",
        lambda w: w.rows("rows.jsonl", json.dumps(GOOD) + '\n{"instruction": "a", '),
        "row 2: broken JSON at column",
    ),
    (
        "rows: no answer",
        lambda w: w.copy_of_rows(lambda rows: rows[5].pop("output")),
        "rows.json, row 6: no field output",
    ),
    (
        "rows: an empty answer",
        lambda w: w.copy_of_rows(lambda rows: rows[5].update(output=" ")),
        "rows.json, row 6: the answer is empty",
    ),
    (
        "rows: a number for text",
        lambda w: w.copy_of_rows(lambda rows: rows[5].update(output=5)),
        "row 6: field output must be text, found int",
    ),
    (
        "rows: nothing for text",
        lambda w: w.copy_of_rows(lambda rows: rows[5].update(instruction=None)),
        "row 6: field instruction must be text, found nothing",
    ),
    ("rows: a surrogate", lambda w: w.rows("rows.json", '[{"instruction": "a", "output": "\\ud800"}]'), "row 1: "),
    ("rows: nested too deeply", lambda w: w.rows("rows.jsonl", "[" * 100_000), "row 1: broken JSON: nested too deeply"),
    ("rows: JSON nested too deeply", lambda w: w.rows("rows.json", "[" * 100_000), "nested too deeply"),
    (
        "rows: of 10 MB",
        lambda w: [
            *w.copy_of_rows(lambda rows: rows[0].update(output="one two " * 1_300_000)),
            "tokenizer.max_seq_len=null",
        ],
        "its longest sequence has",
    ),
    (
        "rows: all bad and skipped",
        lambda w: [*w.rows("rows.jsonl", "{}\n{}\n"), "on_bad_row=skip"],
        "has no row to train on",
    ),
    ("rows: answers cut away", lambda w: ["tokenizer.max_seq_len=3"], "whose answer max_seq_len=3 cuts away"),
    (
        "rows: other column names",
        lambda w: w.rows("rows.json", [{"ask": "a", "tell": "b"}]),
        "name it with column_map: {prompt: ...}",
    ),
    (
        "rows: a column that is not there",
        lambda w: ["+dataset.column_map={prompt: ask}"],
        "no field ask; it has instruction",
    ),
    (
        "rows: a part that is not there",
        lambda w: ["+dataset.split=test"],
        "dataset split=test: there is train; a part of a split is written train[:90%]",
    ),
    ("rows: an empty part", lambda w: ["+dataset.split=train[:0]"], "has no row to train on"),
    (
        "rows: a field that is not there",
        lambda w: w.rows("rows.json", {"data": [GOOD]}, field="rows"),
        "rows.json is no JSON object with this field; its fields are data",
    ),
    (
        "csv: too few columns",
        lambda w: w.rows("rows.csv", "instruction,output\na,b\nc\n"),
        "row 3: has not the 2 columns of the header",
    ),
    ("csv: an open quote", lambda w: w.rows("rows.csv", 'instruction,output\na,"b\n'), "broken CSV"),
    ("csv: only a header", lambda w: w.rows("rows.csv", "instruction,output\n"), "rows.csv: is empty"),
    ("csv: unknown encoding", lambda w: w.rows("rows.csv", "instruction,output\na,b\n", encoding="utf-99"), "utf-99"),
    ("parquet: not one", lambda w: w.rows("rows.parquet", b"PAR1 not really"), "not a Parquet file"),
    ("parquet: cut", lambda w: w.rows("rows.parquet", PARQUET[: len(PARQUET) // 2]), "not a Parquet file"),
    (
        "parquet: a broken name",
        lambda w: w.rows("rows.parquet", PARQUET.replace(b"output", b"out\xf2ut")),
        "not a Parquet file",
    ),
    ("parquet: empty", lambda w: w.rows("rows.parquet", b""), "not a Parquet file"),
    ("chat: no turns", lambda w: w.rows("rows.json", [{"messages": []}], "chat"), "messages must be a list of turns"),
    (
        "chat: text",
        lambda w: w.rows("rows.json", [{"messages": "hi"}], "chat"),
        "messages must be a list of turns, found str",
    ),
    (
        "chat: unknown role",
        lambda w: w.rows("rows.json", [{"messages": [{"role": "robot", "content": "a"}]}], "chat"),
        "turn 1 has the role 'robot'",
    ),
    (
        "chat: no content",
        lambda w: w.rows("rows.json", [{"messages": [{"role": "user"}]}], "chat"),
        "turn 1 has no text",
    ),
    (
        "chat: no answer",
        lambda w: w.rows("rows.json", [{"messages": [TURN]}], "chat"),
        "no answer: there is no assistant turn",
    ),
    (
        "chat: a list as role",
        lambda w: w.rows("rows.json", [{"messages": [{"role": [], "content": "a"}]}], "chat"),
        "turn 1 has the role",
    ),
    ("text: no field", lambda w: w.rows("rows.json", [{"txt": "a"}], "text"), "no field text; it has txt"),
    ("text: blank", lambda w: w.rows("rows.json", [{"text": " "}], "text"), "the text is empty"),
    (
        "validation: no file",
        lambda w: ["+dataset_val={_component_: distill_tune.data.instruct, source: nowhere.json}"],
        "dataset nowhere.json: no such file",
    ),
    (
        "validation: a bad row",
        lambda w: [
            "dataset_val=distill_tune.data.instruct",
            w.rows("val.json", [GOOD, {**GOOD, "output": ""}])[1].replace("dataset.", "dataset_val."),
        ],
        "dataset_val: 1 bad row; mend",
    ),
    (
        "packed without a length",
        lambda w: ["+dataset.packed=True", "tokenizer.max_seq_len=null"],
        "dataset.packed=True: needs a length",
    ),
    # A served teacher
    (
        "served: another token",
        lambda w: w.served(401, {"/about": {"error": {"message": "no"}}}),
        "wants another token, or one (401: no); set token",
    ),
    (
        "served: another server",
        lambda w: w.served(200, {"/about": {"hello": 1}}),
        "is none of distill-tune, vllm, sglang",
    ),
    (
        "served: another tokenizer",
        lambda w: w.served(200, {"/about": SERVED, "/vocabulary": OTHER_TOKENS}),
        "its teacher's tokenizer is not that of the rows; take kind=hidden, and name it as teacher_tokenizer: ",
    ),
    (
        "served: no tokenizer",
        lambda w: w.served(200, {"/about": SERVED | {"tokenizer": None}}),
        "its teacher has no tokenizer to prove its tokens by; put one into its folder",
    ),
    (
        "served: fewer log-probabilities",
        lambda w: w.served(200, {"/about": SERVED | {"most_log_probs": 20}}),
        "gives 20 log-probabilities at most: k=50",
    ),
    (
        "served: another kind",
        lambda w: w.served(200, {"/about": SERVED | {"kinds": ["sampled"]}}),
        "distill-tune, serving other, gives sampled, not kind=top_k",
    ),
    # Hardware
    ("device: no CUDA", lambda w: ["device=cuda"], "device=cuda: PyTorch sees no CUDA device here"),
    ("device: no MPS", lambda w: ["device=mps"], "device=mps: there is no MPS device here"),
    # Output folders
    ("output_dir: a file", lambda w: ["output_dir=config.yaml"], "output_dir=config.yaml: cannot be made"),
    ("output_dir: below a file", lambda w: ["output_dir=config.yaml/out"], "cannot be made: config.yaml is a file"),
    (
        "output_dir: not writable",
        lambda w: ["output_dir=/proc/none/out"],
        "output_dir=/proc/none/out: cannot be written",
    ),
    (
        "output_dir: not writable, before rows are read",
        lambda w: ["output_dir=/proc/none/out", *w.rows("rows.json", "[]")],
        "output_dir=/proc/none/out: cannot be written",
    ),
    (
        "profiler: a folder that is not writable",
        lambda w: ["+profiler.enabled=True", "+profiler.output_dir=/proc/none"],
        "profiler.output_dir=/proc/none: cannot be written",
    ),
    (
        "metric_logger: a folder that is not writable",
        lambda w: [f"metric_logger={LOGGERS}DiskLogger", "metric_logger.log_dir=/proc/none"],
        "metric_logger.log_dir=/proc/none: cannot be written",
    ),
    (
        "output_dir: a model of another run",
        lambda w: w.run_before("model/config.json"),
        "holds a run already; go on with it (resume=auto)",
    ),
    (
        "output_dir: checkpoints of another run",
        lambda w: w.run_before("checkpoints/step_3/state.json"),
        "holds a run already",
    ),
    (
        "resume: none there",
        lambda w: ["resume=True"],
        "checkpoints has none; they are written every save_every_n_steps",
    ),
    (
        "resume: torn",
        lambda w: [*w.run_before("checkpoints/step_3/state.json"), "resume=auto"],
        "no checkpoint in out/checkpoints is whole",
    ),
    ("resume: no checkpoint", lambda w: ["resume=."], "resume=.: SHA256SUMS cannot be read"),
    (
        "resume: no such folder",
        lambda w: ["resume=out/checkpoints/step_9"],
        "resume=out/checkpoints/step_9: no such folder",
    ),
    (
        "keep_best without validation",
        lambda w: ["+keep_best=val_loss"],
        "keep_best=val_loss: nothing heeds it without dataset_val; leave it out",
    ),
    # A stored teacher
    (
        "cache: none there",
        lambda w: f"{KIND}Cached +teacher_model.path=nowhere".split(),
        "teacher_model.path=nowhere: no cache of a teacher; make one from this config with its teacher",
    ),
    ("cache: not finished", lambda w: w.cache("top_k", finished=False), "this cache is not finished"),
    ("cache: of a later version", lambda w: w.cache("top_k", format=9), "a cache of format 9; this version reads 1"),
    (
        "cache: no kind that is known",
        lambda w: w.cache("top_k", kind="dense"),
        "kind=dense: must be one of sampled, top_k, hidden",
    ),
    (
        "cache: a shard is gone",
        lambda w: w.cache("top_k", files={"records-1.safetensors": {"bytes": 9, "rows": 1, "positions": 1}}),
        "records-1.safetensors: is missing; copy it again, or the command that made the cache makes it anew",
    ),
    (
        "cache: lacks the rows",
        lambda w: w.cache("top_k"),
        "lacks 64 of 64 rows",
    ),
    (
        "cache: a divergence that draws do not serve",
        lambda w: w.cache("sampled", f"{LOSS}ReverseKL"),
        "a sampled record serves ForwardKL, not ReverseKL: kind top_k serves it over its k tokens and the rest",
    ),
    (
        "cache: another temperature",
        lambda w: w.cache("top_k", "temperature=2"),
        "a top_k record made at temperature 1 serves no other, and the loss is at 2: make one at 2, or one of kind "
        "hidden",
    ),
    (
        "cache: a schedule of temperatures",
        lambda w: w.cache("sampled", "temperature={_component_: distill_tune.training.Linear, start: 2.0, end: 1.0}"),
        "a sampled record serves one temperature, and temperature is a schedule: take kind hidden, which serves any",
    ),
    (
        "cache: a weight that needs the teacher",
        lambda w: w.cache("top_k", "kd_token_weight=distill_tune.losses.TargetProbability"),
        "a top_k record does not know what TargetProbability needs of the teacher: take kind hidden",
    ),
    (
        "cache: hidden states of layers",
        lambda w: w.cache("hidden", *HIDDEN.split()),
        "hidden_loss: needs a single teacher; teacher_model is a list, or gives no hidden states",
    ),
    (
        "cache: prompts that change",
        lambda w: w.cache("top_k", "augmentations=[{_component_: distill_tune.data.DropTokens}]"),
        "augmentations make prompts that no cache has",
    ),
    # A cache that a run fills
    (
        "teacher_cache: nothing said of its kind",
        lambda w: ["teacher_cache=cache"],
        "teacher_cache=cache: no cache yet; say what it is to hold: cache.kind=sampled, top_k or hidden",
    ),
    (
        "teacher_cache: the run's own folder",
        lambda w: [*THROUGH, "teacher_cache=out"],
        "teacher_cache=out: output_dir is the run's own folder; name another",
    ),
    (
        "teacher_cache: a folder that cannot be made",
        lambda w: [*THROUGH, "teacher_cache=/proc/none"],
        "teacher_cache=/proc/none: cannot be written",
    ),
    (
        "teacher_cache: a folder of something else",
        lambda w: [*THROUGH, "teacher_cache=."],
        "and is no cache; name a new folder",
    ),
    (
        "teacher_cache: of another teacher",
        lambda w: [*w.cache("top_k")[:0], "teacher_cache=cache"],
        "teacher_cache=cache: holds another cache; set it back, or name another folder",
    ),
    (
        "teacher_cache: a teacher that follows the student",
        lambda w: [*f"{KIND}EMA".split(), *THROUGH],
        "EMA follows the student; it cannot be stored before",
    ),
    (
        "teacher_cache: before a cache",
        lambda w: [*w.cache("top_k"), *THROUGH, "teacher_cache=other"],
        "distill_tune.teachers.Cached is a cache already; name the teacher itself",
    ),
    (
        "teacher_cache: hidden states of layers",
        lambda w: [*HIDDEN.split(), *THROUGH],
        "teacher_cache=cache: hidden_loss compares layers, whose states no cache has; leave one out",
    ),
    (
        "teacher_cache: a divergence that draws do not serve",
        lambda w: [*THROUGH, "cache.kind=sampled", f"{LOSS}ReverseKL"],
        "teacher_cache=cache: a sampled record serves ForwardKL, not ReverseKL",
    ),
    (
        "teacher_cache: another temperature",
        lambda w: [*THROUGH, "cache.temperature=2"],
        "teacher_cache=cache: a top_k record made at temperature 2 serves no other",
    ),
    (
        "teacher_cache: prompts that change",
        lambda w: [*THROUGH, "augmentations=[{_component_: distill_tune.data.DropTokens}]"],
        "teacher_cache=cache: augmentations make prompts that no cache has",
    ),
    ("resume said twice", lambda w: ["resume=auto", "resume_from_checkpoint=True"], "means the same; keep one"),
]
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 900,
                "content": "</s>",
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
        "model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1, "</s>": 900}, "unk_token": "<unk>"},
    }
)
