"""`distill-tune init-student`: a student from its teacher, where no smaller sibling exists."""

import argparse
import math
from typing import Any

from distill_tune.cli.held_out import add_row_options, dataset_of, named_as_given, require_num_rows
from distill_tune.config.files import local_path
from distill_tune.errors import UserError

_DESCRIPTION = """Make a student from its teacher by leaving layers out, and write it as a Hugging Face folder.

  distill-tune init-student TEACHER STUDENT --layers 0,1,2,5,8     keep these layers
  distill-tune init-student TEACHER STUDENT --every 2              keep every second layer
  distill-tune init-student TEACHER STUDENT --drop 4               leave out the four that are missed least

--drop measures: again and again the layer goes whose removal leaves the lowest loss on held-out rows, by default
docstrings of installed Python code; --source takes rows of yours. The student has lost something all the same;
distillation from the teacher heals it.
"""
_MAX_SEQ_LEN = 512


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "init-student",
        help="make a student by leaving out layers of its teacher",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("teacher", type=local_path, help="a Hugging Face folder")
    parser.add_argument("student", type=local_path, help="the folder to write")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--layers", type=_numbers, metavar="0,1,...", help="the layers to keep, from 0")
    which.add_argument("--every", type=int, metavar="N", help="keep every Nth layer, the first included")
    which.add_argument("--drop", type=int, metavar="N", help="leave out the N layers that are missed least")
    add_row_options(parser, num_rows=32)
    parser.set_defaults(function=_init_student)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _init_student(options: argparse.Namespace) -> None:
    if options.student.exists():
        raise UserError(f"{options.student}: is there already; name another folder, or delete it")
    if options.every is not None and options.every < 2:
        raise UserError(f"--every {options.every}: must be 2 or more")

    from omegaconf import OmegaConf

    from distill_tune import models, training
    from distill_tune.models.pruning import keep_layers, layers_kept, pruned_config
    from distill_tune.training.export import write_model_folder

    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(options.teacher)})
    checkpoint = models.open_checkpoint("teacher", component, None)
    dtype = checkpoint.dtype()
    model = models.checked_on_meta("teacher", component, checkpoint, dtype)
    decoder, num_layers = model.decoder_config, len(model.layers)
    if options.drop is not None and not 0 < options.drop < num_layers:
        raise UserError(f"--drop {options.drop}: must leave some of the teacher's {num_layers} layers")
    device = training.find_device("auto")
    kept = layers_kept(num_layers, options.layers, options.every) if options.drop is None else []
    models.load_weights(model, checkpoint, device)
    model.eval()
    measure = _Measure(model, options, device)
    before = measure.perplexity()
    if options.drop is not None:
        kept = measure.keep_all_but(options.drop)
    else:
        keep_layers(model, kept)
    after = measure.perplexity()
    conversion = models.conversion_of(model, None, checkpoint.config)
    write_model_folder(
        options.student,
        conversion.to_hf(dict(training.full_weights(model))),
        pruned_config(conversion.exported_config(), decoder, kept),
        checkpoint.folder,
        dtype,
    )
    dropped = [layer for layer in range(num_layers) if layer not in kept]
    print(f"left out {len(dropped)} of {num_layers} layers: {', '.join(map(str, dropped))}")
    print(f"perplexity on {measure.num_rows} held-out rows: {before:.1f} with all layers, {after:.1f} without these")
    print(options.student)


class _Measure:
    """Held-out loss of a model as its layers go."""

    def __init__(self, model: Any, options: argparse.Namespace, device: Any) -> None:
        from distill_tune import data, evaluation
        from distill_tune.teachers import LiveTeacher

        require_num_rows(options)
        self._model, self._device, loaded = model, device, LiveTeacher(model)
        self._head = loaded.head
        self._reader = evaluation.Reader(str(options.teacher), loaded, min(_MAX_SEQ_LEN, model.max_seq_len))
        with named_as_given(options):
            readings = [evaluation.Reading(data.hf_tokenizer(str(options.teacher)))]
            most = options.rows or options.default_rows
            documents = evaluation.read_documents(dataset_of(options), readings, key="dataset", most=most)
        if options.source or options.dataset:
            print(documents.told())
        (self._written,) = documents.written
        self.num_rows = len(self._written)
        learned = [(written, written.supervised) for written in self._written]
        self._batches = [batch.to(device) for batch in evaluation.read_together(self._reader, learned)]
        self._num_tokens = data.num_supervised(self._batches)

    def perplexity(self) -> float:
        from distill_tune import evaluation

        found = evaluation.score(self._reader, self._written, self._device)
        return math.exp(sum(of.nll[of.supervised].sum() for of in found) / self._num_tokens)

    def keep_all_but(self, count: int) -> list[int]:
        """Leave out ``count`` layers, the least missed first; returns those that stay."""
        from distill_tune.models.pruning import keep_layers, least_missed_layer

        kept = list(range(len(self._model.layers)))
        for _ in range(count):
            at, loss = least_missed_layer(self._model, self._batches, self._loss)
            print(f"without layer {kept[at]}: perplexity {math.exp(loss / self._num_tokens):.1f}", flush=True)
            del kept[at]
            keep_layers(self._model, [layer for layer in range(len(self._model.layers)) if layer != at])
        return kept

    def _loss(self, hidden: Any, batch: Any) -> float:
        from distill_tune.losses import distillation_loss

        rows = self._model.norm(hidden[0, batch.supervised_positions])
        targets = batch.targets[0, batch.supervised_positions]
        return distillation_loss(rows, self._head.projection_for_loss(), targets).ce.item()
